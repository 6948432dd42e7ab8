"""The client over real servers: events once and in order, resets, tokens, flow control, positions, cancellation."""

import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio import client
from airy_trio.auth.users import AuthOptions
from airy_trio.client import ClientError, Event, Events, FilePosition, Follower, Refused, Reset
from airy_trio.delivery.client import ReplayOptions
from airy_trio.log.memory import MemoryStore
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.stomp.frames import Frame
from tests.auth.signing import SECRET, issuer
from tests.client.rig import TIMEOUT_S, append, cutting, number_of, tag, take, url_of
from tests.processes import free_ports
from tests.sessions.serving import HOST, Server, open_log, serving

SEED = 5
RESTARTS = 20
SLOW = 60.0


@asynccontextmanager
async def opened(server: Server) -> AsyncGenerator[Follower]:
    async with client.open(url_of(server)) as inbox:
        yield inbox


@define
class Journal:
    """A position store that records what is saved."""

    saved: list[str] = field(factory=list)

    async def load(self) -> str | None:
        await trio.lowlevel.checkpoint()
        return self.saved[-1] if self.saved else None

    async def save(self, position: str) -> None:
        await trio.lowlevel.checkpoint()
        self.saved.append(position)


async def test_event_has_type_payload_and_position(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 1)
        event = await anext(inbox.events(begin="oldest"))
        body = tag(1).body
        assert event == Event(
            type="tag.updated",
            payload={"id": "t1", "pad": ""},
            position=f"{server.log.epoch}-1",
            truncated=False,
            body=body,
        )


async def test_truncated_event_has_its_flag(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await server.log.append(server.log.head, [tag(1)._replace(truncated=True)], "point")
        event = await anext(inbox.events(begin="oldest"))
        assert isinstance(event, Event)
        assert event.truncated


async def test_begins_with_the_next_event_or_the_oldest(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 3)
        async with aclosing(inbox.events()) as events, trio.open_nursery() as nursery:
            nursery.start_soon(append_when_subscribed, server, 4)
            assert await take(events, 1) == [4]
        assert await take(inbox.events(begin="oldest"), 4) == [1, 2, 3, 4]
        assert await take(inbox.events(position=f"{server.log.epoch}-2"), 2) == [3, 4]


async def append_when_subscribed(server: Server, number: int) -> None:
    await wait_all_tasks_blocked(0.05)
    await append(server, number, number)


async def test_only_the_events_of_the_destination(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 1)
        await server.append(2, 2)
        await append(server, 3, 3)
        assert await take(inbox.events("/events/tag.updated", begin="oldest"), 2) == [1, 3]


async def test_nothing_lost_or_repeated_over_restarts_of_the_server(autojump_clock: MockClock) -> None:
    chance, store, port = Random(SEED), MemoryStore(), free_ports(1)
    options = ListenerOptions(port=port, tls_certificate="")
    got: list[int] = []
    appended = 0

    async def listen() -> None:
        async with client.open(f"ws://{HOST}:{port}") as inbox:
            async for event in inbox.events(begin="oldest"):
                got.append(number_of(event))
                await trio.sleep(chance.uniform(0, 0.2))

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for _ in range(RESTARTS):
                async with serving(await open_log(store), options) as server:
                    goal = appended + chance.randint(0, 30)
                    while appended < goal:
                        appended += 1
                        await append(server, appended, appended)
                        await trio.sleep(chance.uniform(0, 0.1))
                    await trio.sleep(chance.choice((0, 0.1, 2)))
                await trio.sleep(chance.choice((0, 0.1, 20)))
            async with serving(await open_log(store), options):
                while len(got) < appended:  # noqa: ASYNC110 - of the autojump clock
                    await trio.sleep(1)
                nursery.cancel_scope.cancel()
    assert appended > RESTARTS
    assert got == list(range(1, appended + 1))


@pytest.mark.parametrize("bytes_max", [200, 2000, 20_000])
async def test_nothing_lost_or_repeated_if_connections_are_cut_anywhere(
    bytes_max: int, autojump_clock: MockClock
) -> None:
    cuts, count = 20, 200
    chance = Random(SEED)
    async with serving() as server, cutting(server.port, chance, cuts=cuts, bytes_max=bytes_max) as cutter:
        await append(server, 1, count, size=100)
        async with client.open(f"ws://{HOST}:{cutter.port}") as inbox:
            assert await take(inbox.events(begin="oldest"), count) == list(range(1, count + 1))
        assert cutter.connections == cuts + 1 or bytes_max == 20_000


async def test_events_during_an_outage_before_the_first_event_are_received(autojump_clock: MockClock) -> None:
    """The position is known from the RECEIPT on, before the first event."""
    async with serving() as server, cutting(server.port, Random(SEED)) as cutter:
        await append(server, 1, 1)
        async with client.open(f"ws://{HOST}:{cutter.port}") as inbox:
            events = inbox.events()
            await wait_all_tasks_blocked(0.05)
            await cutter.cut()
            await append(server, 2, 3)
            await trio.sleep(200)  # longer than the recent window
            assert await take(events, 2) == [2, 3]


async def test_expired_position_gives_a_reset_then_what_follows(autojump_clock: MockClock) -> None:
    async with serving(replay=ReplayOptions(window_s=10**6)) as server, opened(server) as inbox:
        await append(server, 1, 5)
        await server.log.store.trim(age_s=3600, keep=2, limit=100, unused_s=10**6)
        await server.log.open()
        events = inbox.events(position=f"{server.log.epoch}-1")
        assert await anext(events) == Reset(verdict="reset-expired", position=f"{server.log.epoch}-5")
        await append(server, 6, 7)
        assert await take(events, 2) == [6, 7]  # what is reloaded after a reset contains 4 and 5


async def test_new_epoch_under_a_running_loop_gives_a_reset(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 2)
        events = inbox.events(begin="oldest")
        assert await take(events, 2) == [1, 2]
        before = server.log.epoch
        await server.log.begin_epoch(server.log.head, "point")
        await append(server, 3, 3)
        reset = await anext(events)
        assert reset == Reset(verdict="reset-epoch", position=f"{server.log.epoch}-1")
        assert server.log.epoch != before
        await append(server, 4, 4)
        assert await take(events, 1) == [4]


@pytest.mark.parametrize("saved", ["", "garbage", "a\nb:c\0", "zzzzzz-1"])
async def test_unreadable_or_foreign_position_gives_a_reset(saved: str, autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 1)
        reset = await anext(inbox.events(position=saved))
        assert isinstance(reset, Reset)
        assert reset.verdict == "reset-epoch"


async def test_reset_is_reported_once_although_the_connection_is_lost_again(autojump_clock: MockClock) -> None:
    async with (
        serving() as server,
        cutting(server.port, Random(SEED)) as cutter,
        client.open(f"ws://{HOST}:{cutter.port}") as inbox,
    ):
        events = inbox.events(position="zzzzzz-1")
        assert isinstance(await anext(events), Reset)
        await cutter.cut()
        await append(server, 1, 1)
        assert await take(events, 1) == [1]


async def test_new_token_is_fetched_for_each_connection(autojump_clock: MockClock) -> None:
    tokens = iter(["0ld", "0ld", "n3w"])
    fetched: list[str] = []

    async def fetch() -> str:
        await trio.sleep(1)
        fetched.append(next(tokens))
        return fetched[-1]

    async with serving(auth=AuthOptions(mode="tokens", tokens={"agent": "0ld"})) as server:
        await append(server, 1, 1)
        async with client.open(url_of(server), token=fetch) as inbox:
            events = inbox.events(begin="oldest")
            assert await take(events, 1) == [1]
            server.sessions.renew(AuthOptions(mode="tokens", tokens={"agent": "n3w"}))
            await append(server, 2, 2)
            assert await take(events, 1) == [2]
    assert fetched == ["0ld", "0ld", "n3w"]


async def test_expired_web_token_is_renewed(autojump_clock: MockClock) -> None:
    sign, fetched = issuer("HS256"), 0

    def fetch() -> str:
        nonlocal fetched
        fetched += 1
        return sign.token(exp=int(time.time()) + 60)

    auth = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
    async with serving(auth=auth) as server, client.open(url_of(server), token=fetch) as inbox:
        await append(server, 1, 1)
        events = inbox.events(begin="oldest")
        assert await take(events, 1) == [1]
        await trio.sleep(200)
        await append(server, 2, 2)
        assert await take(events, 1) == [2]
        assert fetched > 1


async def test_rejected_token_is_reported_with_the_servers_words(autojump_clock: MockClock) -> None:
    async with serving(auth=AuthOptions(mode="tokens", tokens={"agent": "s3cret"})) as server:
        async with client.open(url_of(server), token="wrong") as inbox:
            with pytest.raises(Refused, match="not accepted") as refused:
                await anext(inbox.events())
            assert refused.value.token == "401-unauthorized"
        async with client.open(url_of(server)) as inbox:
            with pytest.raises(Refused):
                await anext(inbox.events())


async def test_tokens_that_are_always_rejected_end_the_loop(autojump_clock: MockClock) -> None:
    fetched = 0

    def fetch() -> str:
        nonlocal fetched
        fetched += 1
        return "wrong"

    auth = AuthOptions(mode="tokens", tokens={"agent": "s3cret"})
    async with serving(auth=auth) as server, client.open(url_of(server), token=fetch) as inbox:
        with pytest.raises(Refused):
            await anext(inbox.events())
    assert fetched == client.TOKEN_TRIES_MAX


async def test_error_of_the_token_function_is_raised_by_the_loop(autojump_clock: MockClock) -> None:
    def fetch() -> str:
        raise LookupError

    async with serving() as server, client.open(url_of(server), token=fetch) as inbox:
        with pytest.raises(LookupError):
            await anext(inbox.events())


@pytest.mark.parametrize("token", ["s3cret\n", "s3\0cret"])
async def test_token_with_a_line_end_or_nul_is_one_error(token: str, autojump_clock: MockClock) -> None:
    async with serving() as server, client.open(url_of(server), token=token) as inbox:
        with pytest.raises(ClientError, match="the token contains a line end or NUL"):
            await anext(inbox.events())


async def test_forbidden_destination_ends_the_loop(autojump_clock: MockClock) -> None:
    auth = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
    token = issuer("HS256").token(airy_destinations=["/events/tag.updated"])
    async with serving(auth=auth) as server, client.open(url_of(server), token=token) as inbox:
        await append(server, 1, 1)
        events = inbox.events("/events")
        for _ in range(2):  # it is still forbidden
            with pytest.raises(Refused) as refused:
                await anext(events)
            assert refused.value.token == "403-destination"
        assert await take(inbox.events("/events/tag.updated", begin="oldest"), 1) == [1]


async def test_unknown_destination_ends_the_loop(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        with pytest.raises(Refused) as refused:
            await anext(inbox.events("/event"))
        assert refused.value.token == "404-unknown-destination"
        assert refused.value.prose.startswith("There is no such destination")


async def test_busy_loop_reads_little_and_keeps_its_connection(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    read = 0
    event_of = client._event  # noqa: SLF001 - counts what is read

    def counted(frame: Frame) -> Event:
        nonlocal read
        read += 1
        return event_of(frame)

    monkeypatch.setattr(client, "_event", counted)
    count = 50
    async with serving(options=ListenerOptions(port=0, heartbeat_ms=1000)) as server, opened(server) as inbox:
        await append(server, 1, count, size=1000)
        events = inbox.events(begin="oldest")
        assert await take(events, 1) == [1]
        await trio.sleep(SLOW)  # many heart-beats of both sides
        assert read <= 2
        assert await take(events, count - 1) == list(range(2, count + 1))
        assert len(server.endings) == 0
        assert len(server.sessions.clients) == 1


async def test_loop_disconnected_as_too_slow_loses_nothing() -> None:
    count = 150
    options = ListenerOptions(port=0, send_timeout_s=0.3)
    async with serving(options=options) as server, cutting(server.port, Random(SEED)) as cutter:
        await append(server, 1, count, size=60_000)
        async with client.open(f"ws://{HOST}:{cutter.port}") as inbox:
            events = inbox.events(begin="oldest")
            assert await take(events, 1) == [1]
            with trio.fail_after(20):
                while server.sessions.clients:  # noqa: ASYNC110 - a session has no event for this
                    await trio.sleep(0.1)
            assert await take(events, count - 1) == list(range(2, count + 1))
            assert cutter.connections > 1


async def test_position_is_saved_when_the_loop_requests_the_next_event(autojump_clock: MockClock) -> None:
    journal = Journal()
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 3)
        epoch = server.log.epoch
        events = inbox.events(position=journal, begin="oldest")
        await take(events, 1)
        assert journal.saved == [f"{epoch}-0"]  # the position at the beginning
        await take(events, 1)
        assert journal.saved == [f"{epoch}-0", f"{epoch}-1"]
        assert await take(inbox.events(position=journal), 2) == [2, 3]  # 2 was not handled


async def test_position_of_a_reset_is_saved_too(autojump_clock: MockClock) -> None:
    journal = Journal(["zzzzzz-1"])
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 1)
        events = inbox.events(position=journal)
        assert isinstance(await anext(events), Reset)
        for _ in range(2):
            with trio.move_on_after(1):
                await anext(events)
        assert journal.saved == ["zzzzzz-1", f"{server.log.epoch}-1"]


async def test_file_keeps_the_position_and_repeats_the_unhandled_event(tmp_path: Path) -> None:
    position = FilePosition(tmp_path / "position")
    async with serving() as server:
        await append(server, 1, 4)
        async with opened(server) as inbox:
            async for event in inbox.events(position=position, begin="oldest"):
                if number_of(event) == 3:
                    break
        assert (tmp_path / "position").read_text() == f"{server.log.epoch}-2\n"
        async with opened(server) as inbox:
            assert await take(inbox.events(position=position), 2) == [3, 4]
    assert os.listdir(tmp_path) == ["position"]  # noqa: PTH208 - not in a thread


async def test_error_of_the_position_store_is_raised_by_the_loop(tmp_path: Path) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 2)
        with pytest.raises(NotADirectoryError):
            await take(inbox.events(position=FilePosition(Path(__file__) / "position"), begin="oldest"), 2)


async def test_second_loop_ends_the_first_with_an_error(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 2)
        first = inbox.events(begin="oldest")
        assert await take(first, 1) == [1]
        second = inbox.events(begin="oldest")
        with pytest.raises(ClientError, match="another client"):
            await anext(first)
        assert await take(second, 2) == [1, 2]
        await wait_all_tasks_blocked(0.05)
        assert len(server.sessions.clients) == 1


async def test_loop_may_end_by_break_and_begin_again(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 2)
        for _ in range(3):
            async for event in inbox.events(begin="oldest"):
                assert number_of(event) == 1
                break


async def test_unknown_begin_raises_value_error(autojump_clock: MockClock) -> None:
    async with client.open(f"ws://{HOST}:9") as inbox:
        with pytest.raises(ValueError, match="begin is 'all'; allowed: 'next', 'oldest', 'current'"):
            inbox.events(begin="all")  # type: ignore[arg-type]


async def test_closed_events_raise_and_close_the_connection(autojump_clock: MockClock) -> None:
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 1)
        events = inbox.events(begin="oldest")
        await take(events, 1)
        for _ in range(2):
            await events.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await anext(events)
        await wait_all_tasks_blocked(0.05)
        assert len(server.sessions.clients) == 0


async def test_nothing_runs_after_the_block(autojump_clock: MockClock) -> None:
    async with serving() as server:
        async with opened(server) as inbox:
            begun, waiting = inbox.events(), inbox.events()
            await wait_all_tasks_blocked(0.05)
            late = inbox.events()
        for events in (waiting, late):
            with pytest.raises((trio.ClosedResourceError, ClientError)):
                await anext(events)
        with pytest.raises(ClientError):
            await anext(begun)
        with pytest.raises(trio.ClosedResourceError):
            inbox.events()


async def test_error_of_the_block_is_not_in_a_group(autojump_clock: MockClock) -> None:
    async with serving() as server:
        await append(server, 1, 1)

        async def fail() -> None:
            async with opened(server) as inbox:
                await take(inbox.events(begin="oldest"), 1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()


async def test_outage_is_logged_once(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    port = free_ports(1)
    with caplog.at_level(logging.INFO, "airy_trio.client"):
        async with client.open(f"ws://{HOST}:{port}") as inbox:
            events = inbox.events()
            await trio.sleep(300)
            async with serving(options=ListenerOptions(port=port)) as server:
                await trio.sleep(60)
                await append(server, 1, 1)
                assert await take(events, 1) == [1]
    lines = [record.getMessage() for record in caplog.records if record.name == "airy_trio.client"]
    assert len(lines) == 2
    assert lines[0] == f"no connection to {HOST}:{port}; retrying: Connection refused"
    assert lines[1] == f"connected to {HOST}:{port}"


async def test_pauses_are_short_again_after_an_event(autojump_clock: MockClock) -> None:
    port = free_ports(1)
    async with cutting(port, Random(SEED)) as cutter, client.open(f"ws://{HOST}:{cutter.port}") as inbox:
        events = inbox.events()
        await trio.sleep(300)
        async with serving(options=ListenerOptions(port=port)) as server:
            await trio.sleep(60)
            await append(server, 1, 2)
            assert await take(events, 2) == [1, 2]
            for number in range(3, 8):
                begun = trio.current_time()
                await cutter.cut()
                await append(server, number, number)
                assert await take(events, 1) == [number]
                assert trio.current_time() - begun <= client.RETRY_FIRST_S


async def test_pauses_are_short_again_after_a_quiet_connection_that_lasted(autojump_clock: MockClock) -> None:
    port = free_ports(1)
    async with (
        serving(options=ListenerOptions(port=port)) as server,
        cutting(port, Random(SEED)) as cutter,
        client.open(f"ws://{HOST}:{cutter.port}") as inbox,
    ):
        events = inbox.events()
        for _ in range(10):  # like a proxy that ends every connection after a time
            before = cutter.connections
            await cutter.cut()
            await trio.sleep(client.RETRY_FIRST_S)
            assert cutter.connections == before + 1
            await trio.sleep(25)
        await append(server, 1, 1)
        assert await take(events, 1) == [1]


class CancelAtStep(trio.abc.Instrument):
    """Cancel a scope when ``task``, or any task if it is None, takes its step with this number."""

    def __init__(self, step: int, scope: trio.CancelScope, task: trio.lowlevel.Task | None) -> None:
        self._left = step
        self._scope = scope
        self._task = task

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._task in (None, task):
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def next_or_cancelled(events: Events, step: int) -> tuple[int | None, bool]:
    """Cancel the wait for the next event at a step. Return its number, and whether the wait was cancelled."""
    number = None
    with trio.CancelScope() as scope:
        if step == 0:
            scope.cancel()
        instrument = CancelAtStep(step, scope, trio.lowlevel.current_task())
        trio.lowlevel.add_instrument(instrument)
        try:
            number = number_of(await anext(events))
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return number, scope.cancelled_caught


async def test_wait_can_be_cancelled_at_each_step_without_loss(autojump_clock: MockClock) -> None:
    cancelled_total = 0
    async with serving() as server, opened(server) as inbox:
        await append(server, 1, 60)
        journal = Journal()
        events = inbox.events(position=journal, begin="oldest")
        got: list[int] = []
        with trio.fail_after(TIMEOUT_S):
            for step in range(6):
                for _ in range(5):
                    number, cancelled = await next_or_cancelled(events, step)
                    cancelled_total += cancelled
                    got += [] if number is None else [number]
        got += await take(events, 60 - len(got))
        assert got == list(range(1, 61))
        assert len(journal.saved) == len(set(journal.saved))  # each position is saved once
        assert 5 < cancelled_total < 30  # some waits have fewer steps


async def test_client_can_be_cancelled_at_each_step_of_any_task(tmp_path: Path) -> None:
    """A program that is cancelled anywhere resumes from its file: at most the last event is repeated."""
    count, got, repeated, step = 40, 0, 0, 0
    position = FilePosition(tmp_path / "position")
    async with serving() as server:
        await append(server, 1, count)
        with trio.fail_after(TIMEOUT_S):
            while got < count:
                step += 1
                with trio.CancelScope() as scope:
                    instrument = CancelAtStep(step, scope, None)
                    trio.lowlevel.add_instrument(instrument)
                    try:
                        async with opened(server) as inbox:
                            async for event in inbox.events(position=position, begin="oldest"):
                                number = number_of(event)
                                assert number in {got, got + 1}
                                repeated += number == got
                                got = number
                                if got == count:
                                    break
                    finally:
                        trio.lowlevel.remove_instrument(instrument)
                await wait_all_tasks_blocked(0.005)
                assert len(server.sessions.clients) == 0
    assert step > 50
    assert repeated


def test_published_names_exist() -> None:
    assert all(hasattr(client, name) for name in client.__all__)


def test_other_urls_are_rejected() -> None:
    async def main(url: str) -> None:
        async with client.open(url):
            pass

    long, form = "a" * 64, ("http://a", "a:80", "ws:///a", "", "ws://a:b")
    for url in (*form, "ws://a/b c", "ws://a/ü", "ws://ü", "ws://a..b", "ws://.", f"ws://{long}", "ws://user:secret@a"):
        with pytest.raises(ValueError, match=r"URL|Port|port"):
            trio.run(main, url)
