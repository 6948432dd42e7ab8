"""The metrics of a real server, parsed as Prometheus does."""

import signal
from pathlib import Path

import pytest
import trio

from airy_trio import __version__
from airy_trio.backfill import BackfillOptions, backfill
from airy_trio.delivery.disconnects import CATALOGUE, CLIENT_FAULT_TOKENS
from airy_trio.delivery.start import RESUMES
from airy_trio.events.models import TYPES
from airy_trio.log.tail import LATENCY_BUCKETS_S
from airy_trio.stomp.frames import Frame
from airy_trio.terminal import ProgressReport
from airy_trio.testing.client import Rejected, StompClient, connect
from airy_trio.websocket.request import STATUSES
from tests.admin.serving import HOST, Port, Samples, admin, free_port, serving_all
from tests.application import Application
from tests.e2e.route import configure
from tests.processes import server

STOPPED_S = 0.5
"""Shorter than the time for which a stopped recorder keeps its lease."""


def labelled(samples: Samples, name: str) -> dict[str, float]:
    """Return the values of one family by its only label."""
    return {labels[0][1]: value for (found, labels), value in samples.items() if found == name}


def counted(samples: Samples, name: str) -> dict[str, float]:
    """Return the values that are not zero."""
    return {label: number for label, number in labelled(samples, name).items() if number}


def value(samples: Samples, name: str) -> float:
    return samples[name, ()]


async def until(port: Port, name: str, expected: float) -> Samples:
    """Scrape until a value is the expected one."""
    while value(samples := await port.samples(), name) != expected:
        pass
    return samples


async def test_metrics_of_an_idle_server(any_application: Application) -> None:
    async with serving_all(any_application.migrate(admin(free_port()))) as (_, port):
        samples = await port.samples()
    assert labelled(samples, "airy_trio_build_info") == {__version__: 1}
    assert labelled(samples, "airy_trio_ready") == {"listener": 1, "feed": 1, "store": 1, "triggers": 1, "lag": 1}
    for name in (
        "connections",
        "subscriptions",
        "connections_behind",
        "deliveries_total",
        "client_requests_queued_total",
        "row_faults_total",
    ):
        assert value(samples, f"airy_trio_{name}") == 0
    assert value(samples, "airy_trio_recording") == 1
    assert value(samples, "airy_trio_recorder_lag_seconds") < 5
    assert value(samples, "process_resident_memory_bytes") > 1_000_000


async def test_labelled_counters_exist_from_the_start(sqlite_application: Application) -> None:
    async with serving_all(sqlite_application.migrate(admin(free_port()))) as (_, port):
        samples = await port.samples()
    for name, labels in {
        "disconnects": {row.name for row in CATALOGUE},
        "connections_rejected": {"connections_max", "connections_per_address_max"},
        "http_requests_refused": {str(status.value) for status in STATUSES},
        "frames_refused": CLIENT_FAULT_TOKENS,
        "events_recorded": set(TYPES),
        "subscriptions_started": set(RESUMES),
    }.items():
        assert labelled(samples, f"airy_trio_{name}_total") == dict.fromkeys(labels, 0)


async def test_metrics_count_deliveries_and_faults(any_application: Application) -> None:
    async with serving_all(any_application.migrate(admin(free_port()))) as (address, port):
        async with await connect(address.host, address.port) as client:
            await client.subscribe()
            await client.subscribe("/events/tag.updated", subscription="1")
            any_application.tag()
            any_application.message()
            any_application.metadata("conversation", "c1", "likes", "many", "number")
            any_application.message(id="m2", delivery_state="lost")
            for _ in range(4):
                await client.receive()
            samples = await until(port, "airy_trio_row_faults_total", 1)
            assert value(samples, "airy_trio_connections") == 1
            assert value(samples, "airy_trio_subscriptions") == 2
            assert value(samples, "airy_trio_tasks") > 2
        samples = await until(port, "airy_trio_connections", 0)
    assert counted(samples, "airy_trio_events_recorded_total") == {
        "tag.updated": 1, "message.updated": 1, "metadata.updated": 1
    }  # fmt: skip
    assert value(samples, "airy_trio_changes_read_total") == 4
    assert value(samples, "airy_trio_metadata_value_faults_total") == 1
    assert value(samples, "airy_trio_deliveries_total") == 4
    assert 400 < value(samples, "airy_trio_delivered_bytes_total") < 4000
    assert value(samples, "airy_trio_log_head_offset") == 3
    assert value(samples, "airy_trio_tail_events") == 3
    assert counted(samples, "airy_trio_disconnects_total") == {"gone": 1}


async def test_current_state_is_complete_after_a_backfill(any_application: Application) -> None:
    settings = any_application.migrate(admin(free_port()))
    name = "airy_trio_current_state_complete"
    async with serving_all(settings) as (address, port):
        any_application.tag()
        assert labelled(await port.samples(), name) == {"channel.updated": 0, "tag.updated": 0}
        await backfill(settings, BackfillOptions(names=["tags"]), ProgressReport())
        while not labelled(await port.samples(), name)["tag.updated"]:  # noqa: ASYNC110 - as in `until`
            await trio.sleep(0.05)
        samples = await until(port, "airy_trio_current_state_behind_events", 0)
        assert labelled(samples, name) == {"channel.updated": 0, "tag.updated": 1}
        assert labelled(samples, "airy_trio_backfill_running") == {"channel.updated": 0, "tag.updated": 0}
        assert value(samples, "airy_trio_current_state_pages_read_total") == 0
        async with await connect(address.host, address.port) as client:
            receipt = await client.subscribe(headers=[("replay", "current")])
            assert receipt.get("state-missing") == "channel.updated,message.updated,metadata.updated"
            assert (await client.receive()).get("state") == "complete"
        assert value(await port.samples(), "airy_trio_current_state_pages_read_total") == 1
        any_application.execute("delete from tags")
        changes = "airy_trio_current_state_updates_total"
        while not labelled(samples := await port.samples(), changes)["ended"]:  # noqa: ASYNC110 - the same
            await trio.sleep(0.05)
        assert labelled(samples, changes) == {"kept": 2, "ended": 1}


async def test_latency_histograms_exclude_replays(any_application: Application) -> None:
    async with serving_all(any_application.migrate(admin(free_port()))) as (address, port):
        async with await connect(address.host, address.port) as client:
            await client.subscribe()
            for number in range(5):
                any_application.tag(f"t{number}")
                await client.receive()
        async with await connect(address.host, address.port) as later:
            await later.subscribe()  # receives the five events again
            for _ in range(5):
                await later.receive()
        samples = await until(port, "airy_trio_deliveries_total", 10)
    for name, count in (("delivery_seconds", 5), ("store_append_seconds", 5)):
        buckets = {
            labels[0][1]: number for (found, labels), number in samples.items() if found == f"airy_trio_{name}_bucket"
        }
        assert [float(bound) for bound in buckets] == [*LATENCY_BUCKETS_S, float("inf")]
        assert list(buckets.values()) == sorted(buckets.values())
        assert buckets["+Inf"] == value(samples, f"airy_trio_{name}_count") >= count
        assert 0 < value(samples, f"airy_trio_{name}_sum") < 10 * count
    assert value(samples, "airy_trio_delivery_seconds_count") == 5


async def test_slow_recorder_shows_in_the_latency_of_other_servers(
    postgres_application: Application, tmp_path: Path
) -> None:
    settings = postgres_application.migrate(admin(free_port()))
    async with (
        server(configure(postgres_application, tmp_path)) as recorder,
        serving_all(settings) as (address, port),
        await connect(address.host, address.port) as client,
    ):
        await client.subscribe()
        assert value(await port.samples(), "airy_trio_recording") == 0
        recorder.process.send_signal(signal.SIGSTOP)
        postgres_application.tag()
        await trio.sleep(STOPPED_S)
        recorder.process.send_signal(signal.SIGCONT)
        assert (await client.receive()).command == "MESSAGE"
        samples = await until(port, "airy_trio_delivery_seconds_count", 1)
    assert value(samples, "airy_trio_delivery_seconds_sum") >= STOPPED_S


async def test_client_faults_are_counted_by_token_and_reason(sqlite_application: Application) -> None:
    async with serving_all(sqlite_application.migrate(admin(free_port()))) as (address, port):
        for frame in (Frame("SEND", (("destination", "/events"),)), Frame("NONSENSE"), Frame("NONSENSE")):
            async with await connect(address.host, address.port) as client:
                await client.send(frame)
                assert (await client.receive()).command == "ERROR"
        samples = await until(port, "airy_trio_connections", 0)
    assert counted(samples, "airy_trio_frames_refused_total") == {
        "403-send-not-allowed": 1, "400-unknown-command": 2
    }  # fmt: skip
    assert counted(samples, "airy_trio_disconnects_total") == {"forbidden": 1, "protocol error": 2}


async def test_started_subscriptions_are_counted(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    async with serving_all(settings) as (address, port), await connect(address.host, address.port) as client:
        position = str((await client.subscribe()).get("position"))
        for number, known in enumerate((position, "000000-7", position), 1):
            headers = [("last-event-id", known)]
            await client.subscribe("/events/tag.updated", subscription=str(number), headers=headers)
        samples = await port.samples()
    started = counted(samples, "airy_trio_subscriptions_started_total")
    assert started == {"live": 1, "resumed": 2, "reset-epoch": 1}


async def test_refused_connections_are_counted(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(f"[listener]\nport = 0\nconnections_max = 2\n[admin]\nport = {free_port()}\n")
    async with serving_all(settings) as (address, port):
        with pytest.raises(Rejected):
            await connect(address.host, address.port, "/elsewhere")
        await until(port, "airy_trio_connections", 0)
        async with StompClient(await trio.open_tcp_stream(HOST, address.port)) as rebound:
            with pytest.raises(Rejected):
                await rebound.upgrade("attacker.example")
        await until(port, "airy_trio_connections", 0)
        async with await connect(address.host, address.port), await connect(address.host, address.port):
            assert value(await port.samples(), "airy_trio_client_addresses") == 1
            for _ in range(3):
                with pytest.raises(Rejected):
                    await connect(address.host, address.port)
        samples = await until(port, "airy_trio_connections", 0)
    assert counted(samples, "airy_trio_http_requests_refused_total") == {"403": 1, "404": 1}
    assert counted(samples, "airy_trio_connections_rejected_total") == {"connections_max": 3}
    assert counted(samples, "airy_trio_disconnects_total") == {"gone": 2, "refused": 2}


async def test_trimmed_rows_are_counted(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port(), "[log]\nretain_events = 1\n"))
    async with serving_all(settings) as (_, port):
        for number in range(3):
            sqlite_application.tag(f"t{number}")
        samples = await until(port, "airy_trio_events_trimmed_total", 2)
    assert value(samples, "airy_trio_changes_trimmed_total") <= 3


async def test_both_prometheus_formats(sqlite_application: Application) -> None:
    async with serving_all(sqlite_application.migrate(admin(free_port()))) as (_, port):
        plain = await port.get("/metrics")
        modern = await port.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert plain.headers["content-type"].startswith("text/plain")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")
