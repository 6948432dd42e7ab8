"""Properties of the ``redis`` store alone: outages, an emptied or evicting Redis, notifications without polling."""

import logging
import ssl
from collections.abc import Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import evolve
from coredis import PureToken
from coredis.parser import Parser

from airy_trio.app.build import adopt_log
from airy_trio.errors import SettingsError, StartError
from airy_trio.events.destinations import EVERYTHING, Destination, OfChannel, OfType
from airy_trio.log.event_log import EventLog
from airy_trio.log.options import LogOptions
from airy_trio.log.redis.scripts import FIELDS
from airy_trio.log.redis.store import (
    CONNECTIONS_MAX,
    SCAN_EVENTS,
    RedisRefusedError,
    answered,
    fields_of,
    open_store,
    read_entry,
)
from airy_trio.log.store import (
    Acknowledgement,
    Claim,
    EventStore,
    Position,
    PositionExpired,
    StaleAppend,
    StateAt,
    StateChange,
    StoreUnavailable,
)
from airy_trio.testing.event_store import check_whole_batches
from airy_trio.testing.store_crashes import write_batches
from tests.application import Application
from tests.certificates import issue
from tests.docs.pages import parts
from tests.log.places import event, fold, redis_places
from tests.redis_server import OUTAGES, RedisServer

BATCH_SIZE = 7
TIMEOUT_S = 20.0
pytestmark = OUTAGES


async def reached(store: EventStore, offset: int) -> Position:
    """Wait until the store answers and has an event with this offset."""
    while True:
        try:
            head = (await store.bounds()).head
            if head.offset >= offset:
                return head
            await store.wait(head)
        except StoreUnavailable:
            await trio.sleep(0.02)


async def write_through_outages(store: EventStore, accepted: list[int]) -> None:
    """Append batches until cancelled; after an outage continue from the store's head."""
    while True:
        try:
            async with aclosing(write_batches(store, BATCH_SIZE)) as writing:
                async for offset in writing:
                    accepted += [offset] * (offset > accepted[-1])  # the first one is the starting point
        except StoreUnavailable:
            await trio.sleep(0.01)


async def test_redis_killed_under_load_loses_nothing(own_redis: RedisServer, nursery: trio.Nursery) -> None:
    accepted: list[int] = [0]
    with trio.fail_after(50):
        async with open_store(own_redis.url) as writer, open_store(own_redis.url) as reader:
            log = EventLog(reader, LogOptions(store="memory", tail_events=100_000))
            await log.open()
            epoch = log.epoch
            async with trio.open_nursery() as writing:
                writing.start_soon(write_through_outages, writer, accepted)
                writing.start_soon(log.follow)
                for _ in range(3):
                    await reached(reader, accepted[-1] + 20 * BATCH_SIZE)
                    await trio.to_thread.run_sync(own_redis.kill)
                    await trio.to_thread.run_sync(own_redis.start)
                await reached(reader, accepted[-1] + 20 * BATCH_SIZE)
                writing.cancel_scope.cancel()
            found = await check_whole_batches(reader, BATCH_SIZE, accepted[-1])
            await log.catch_up()
    assert accepted == sorted(set(accepted))
    assert (log.epoch, log.head.offset, log.statistics()["events"]) == (epoch, found, found)


async def test_stopped_redis_is_unavailable(own_redis: RedisServer) -> None:
    own_redis.kill()
    with trio.fail_after(20):
        async with open_store(own_redis.url) as store:
            for call in (store.bounds, store.resume_point, lambda: store.wait(Position("k7f3q9", 1))):
                with pytest.raises(StoreUnavailable):
                    await call()
            await trio.to_thread.run_sync(own_redis.start)
            assert (await store.bounds()).last == 0


async def test_wait_raises_on_an_outage(own_redis: RedisServer, nursery: trio.Nursery) -> None:
    notified = trio.Event()

    async def wait(store: EventStore) -> None:
        with pytest.raises(StoreUnavailable):
            await store.wait((await store.bounds()).head)
        notified.set()

    with trio.fail_after(20):
        async with open_store(own_redis.url) as store:
            nursery.start_soon(wait, store)
            await store.acknowledge([Acknowledgement(Claim("owner", "name", "token"), Position("k7f3q9", 1))])
            await trio.to_thread.run_sync(own_redis.kill)
            await notified.wait()


async def test_emptied_redis_begins_a_new_epoch(own_redis: RedisServer) -> None:
    with trio.fail_after(20):
        async with open_store(own_redis.url) as store:
            log = EventLog(store, LogOptions(store="memory"))
            await log.open()
            head = await log.append(log.head, [event(1)], "point")
            own_redis.kill()
            own_redis.forget()
            await trio.to_thread.run_sync(own_redis.start)
            with pytest.raises(StaleAppend):
                await log.append(head, [event(2)], "point")
            await log.catch_up()
            assert log.epoch != head.epoch
            assert (log.head.offset, await store.resume_point()) == (0, None)


@pytest.mark.parametrize("lost", ["events", "state"])
async def test_redis_that_evicts_keys_begins_a_new_epoch(redis_server: RedisServer, lost: str) -> None:
    async with redis_places(redis_server.url)() as open_place, open_place() as store:
        head = (await store.bounds()).head
        await store.append(head, [event(1)], "point")
        await store._client.delete([key for key in store._keys if key.endswith(lost)])  # type: ignore[attr-defined] # noqa: SLF001 - what happens to the keys behind its back
        bounds = await store.bounds()
        assert (bounds.epoch != head.epoch, bounds.first, bounds.last) == (True, 1, 0)
        with pytest.raises(PositionExpired):
            await store.read(head, 10)


@pytest.mark.parametrize("lost", [("current",), ("kept",), ("current", "kept"), ("ended",)], ids="-".join)
async def test_state_that_has_lost_objects_counts_as_missing(redis_server: RedisServer, lost: Sequence[str]) -> None:
    async with redis_places(redis_server.url)() as open_place, open_place() as store:
        head = (await store.bounds()).head
        await store.append(head, [event(1), event(2)], "one", state=StateChange(generation="first0"))
        await fold(store)
        await store.append(head.at(2), [], "one", state=StateChange(generation="first0", ended=[event(2).object]))
        await store._client.delete([key for key in store._keys if key.endswith(lost)])  # type: ignore[attr-defined] # noqa: SLF001 - what happens to the keys behind its back
        assert (await store.bounds()).state is None
        with pytest.raises(PositionExpired):
            await store.current(StateAt("first0", head.at(2)), head, 10)
        with pytest.raises(StaleAppend):
            await store.append(head.at(2), [event(3)], "two", state=StateChange(generation="first0"))
        assert not await store.fold("first0", {"message.updated"}, 10)
        await store.append(head.at(2), [event(3)], "two", state=StateChange(generation="second"))
        await fold(store, "second")
        [found] = await store.current(StateAt("second", head.at(3)), head, 10)
        assert (found.offset, (await store.bounds()).head) == (3, head.at(3))


@pytest.mark.parametrize("moved", ["last", "resume_point"])
async def test_append_of_an_older_server_ends_the_state(redis_server: RedisServer, moved: str) -> None:
    """It knows of no state, and so leaves the fields of the state unchanged."""
    async with redis_places(redis_server.url)() as open_place, open_place() as store:
        head = (await store.bounds()).head
        await store.append(head, [event(1)], "one", state=StateChange(generation="first0"))
        assert (await store.bounds()).state is not None
        client, keys = store._client, store._keys  # type: ignore[attr-defined] # noqa: SLF001 - what another program does with the keys
        if moved == "last":
            await client.xadd(keys[0], {"at": "0"}, identifier="2-0")
        await client.hset(keys[1], {moved: "2"})
        assert (await store.bounds()).state is None


async def test_state_that_lacks_trimmed_events_counts_as_missing(redis_server: RedisServer) -> None:
    """A recorder without a state has appended in between, and the one before continues its own."""
    async with redis_places(redis_server.url)() as open_place, open_place() as store:
        head, state = (await store.bounds()).head, StateChange(generation="first0")
        await store.append(head, [event(1), event(2)], "one", state=state)
        await store.append(head.at(2), [], "one")
        await store.trim(age_s=3600, keep=1, limit=10, unused_s=3600)
        await store.append(head.at(2), [event(3)], "two", state=state)
        assert (await store.bounds()).state is None


async def test_append_wakes_waiting_readers_at_once(redis_server: RedisServer, nursery: trio.Nursery) -> None:
    async with (
        redis_places(redis_server.url)() as open_place,
        open_place() as writer,
        open_place() as reader,
    ):
        head = (await writer.bounds()).head
        slept_s = []
        for number in range(5):
            woken = trio.Event()

            async def wait(head: Position, woken: trio.Event) -> None:
                await reader.wait(head)
                woken.set()

            nursery.start_soon(wait, head, woken)
            await trio.sleep(0.05)  # until it waits inside Redis
            start = trio.current_time()
            stored = await writer.append(head, [event(number)], "point")
            head = head.at(stored[-1].offset)
            await woken.wait()
            slept_s.append(trio.current_time() - start)
    assert min(slept_s) < 0.2


async def test_read_continues_over_many_scans(redis_server: RedisServer) -> None:
    async with redis_places(redis_server.url)() as open_place, open_place() as store:
        head = (await store.bounds()).head
        new = [event(number, channel_id="rare" if number % 997 == 0 else "ch1") for number in range(1, 3 * SCAN_EVENTS)]
        await store.append(head, new, "point")
        assert [one.offset for one in await store.read(head, 2, OfChannel("rare"))] == [997, 1994]
        assert [one.offset for one in await store.read(head, 9, OfChannel("rare"))] == [997, 1994, 2991]
        assert len(await store.read(head, 10_000)) == len(new)
        newest = await store.newest(head.at(2990), OfChannel("rare"))
        assert newest is not None
        assert newest.offset == 1994
        assert await store.newest(head.at(len(new)), OfChannel("none")) is None


@pytest.mark.parametrize("destination", [EVERYTHING, OfType("message.updated")], ids=str)
async def test_page_of_the_state_does_not_fetch_many_more_events(
    redis_server: RedisServer, destination: Destination
) -> None:
    count, page = SCAN_EVENTS, 50
    async with redis_places(redis_server.url)() as open_place, open_place() as store:
        head = (await store.bounds()).head
        made = [event(number)._replace(body=bytes(2000)) for number in range(count)]
        await store.append(head, made, "one", state=StateChange(generation="first0"))
        await fold(store)
        fetched = await hget_calls(store)
        found = await store.current(StateAt("first0", head.at(count)), head, count, destination, bytes_max=page * 2000)
        assert (len(found), await hget_calls(store) - fetched < 2 * page) == (page, True)


async def hget_calls(store: EventStore) -> int:
    """Return how many values of hashes Redis has read so far, also for scripts."""
    info = await store._client.info("commandstats")  # type: ignore[attr-defined] # noqa: SLF001 - no figure of ours
    return int(info["cmdstat_hget"]["calls"])


async def test_permanent_error_is_refused(redis_server: RedisServer) -> None:
    async with redis_places(redis_server.url)() as open_place, open_place() as store:
        await store._client.set(store._keys[1], b"of another")  # type: ignore[attr-defined] # noqa: SLF001 - what happens to the keys behind its back
        with pytest.raises(RedisRefusedError, match="WrongType"):
            await store.bounds()


async def test_redis_without_memory_is_unavailable(own_redis: RedisServer) -> None:
    async with open_store(own_redis.url) as store:
        head = (await store.bounds()).head
        await store._client.config_set({"maxmemory": 1})  # type: ignore[attr-defined] # noqa: SLF001 - what an operator does
        with pytest.raises(StoreUnavailable, match="OOM"):
            await store.append(head, [event(1)], "point")


def test_servers_of_earlier_versions_can_read_entries_with_an_age() -> None:
    whole, truncated = event(1)._replace(age_ms=37), event(2)._replace(age_ms=37, truncated=True)
    values = [b"1700000000000", *fields_of(whole)]
    assert len(values) == len(FIELDS)
    assert values[FIELDS.index("truncated")] == b"0 37"  # they take all but 1 for a whole event
    assert fields_of(truncated)[FIELDS.index("truncated") - 1] == b"1"


def test_entries_of_earlier_versions_have_no_age() -> None:
    values = [b"1700000000000", *fields_of(event(1))]
    assert values[FIELDS.index("truncated")] == b"0"
    fields = [part for name, value in zip(FIELDS, values, strict=True) for part in (name.encode(), value)]
    assert read_entry(b"1-0", fields).age_ms is None


async def test_replica_is_unavailable_for_appends_and_left_once(own_redis: RedisServer) -> None:
    async with open_store(own_redis.url) as store:
        head = (await store.bounds()).head
        client = store._client  # type: ignore[attr-defined] # noqa: SLF001 - what a fail-over does
        await client.replicaof("127.0.0.1", 1)
        connections = [await client.client_id()]
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="ReadOnly"):
                await store.append(head, [event(1)], "point")
            connections.append(await client.client_id())
        # The address may lead to the new primary by now. The second attempt comes too soon after the first.
        assert connections[0] != connections[1] == connections[2]


async def test_wait_ends_as_an_outage_when_a_fail_over_demotes_the_server(
    own_redis: RedisServer, nursery: trio.Nursery
) -> None:
    ended = trio.Event()

    async def wait(store: EventStore) -> None:
        with pytest.raises(StoreUnavailable, match="master -> replica"):
            await store.wait((await store.bounds()).head)
        ended.set()

    async with open_store(own_redis.url) as store:
        nursery.start_soon(wait, store)
        client = store._client  # type: ignore[attr-defined] # noqa: SLF001 - what a fail-over does
        with trio.fail_after(TIMEOUT_S):
            await blocked(store, 1)
            await client.replicaof("127.0.0.1", 1)
            await ended.wait()


@pytest.mark.parametrize("demoted", [False, True])
async def test_store_answers_after_many_lost_connections(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, demoted: bool
) -> None:
    async def wait(store: EventStore, head: Position) -> None:
        with pytest.raises(StoreUnavailable):
            await store.wait(head)

    monkeypatch.setattr("airy_trio.log.redis.store.RECONNECT_EVERY_S", 0.0)
    async with open_store(own_redis.url) as store, open_store(own_redis.url) as other:
        head = (await store.bounds()).head
        client = other._client  # type: ignore[attr-defined] # noqa: SLF001 - what an operator and a fail-over do
        if demoted:
            await client.replicaof("127.0.0.1", 1)
        with trio.fail_after(TIMEOUT_S):
            for _ in range(CONNECTIONS_MAX + 1):  # so many places has a pool of coredis by default
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(wait, store, head)
                    await blocked(other, 1)
                    if demoted:
                        with pytest.raises(StoreUnavailable):
                            await store.append(head, [event(1)], "point")
                    else:
                        await client.client_kill(type_=PureToken.NORMAL, skipme=True)
            assert (await store.bounds()).head == head


async def test_many_calls_share_a_limited_number_of_connections(own_redis: RedisServer) -> None:
    async with open_store(own_redis.url) as store, open_store(own_redis.url) as other:
        head = (await other.bounds()).head
        client = other._client  # type: ignore[attr-defined] # noqa: SLF001 - what an operator sees
        with trio.fail_after(TIMEOUT_S):
            async with trio.open_nursery() as waiting:
                for _ in range(2 * CONNECTIONS_MAX):
                    waiting.start_soon(store.wait, head)
                await blocked(other, CONNECTIONS_MAX)
                await other.append(head, [event(1)], "point")
        assert (await client.info("clients"))["connected_clients"] <= CONNECTIONS_MAX + 1


async def blocked(store: EventStore, count: int) -> None:
    """Wait until Redis has this many blocking reads, or more."""
    client = store._client  # type: ignore[attr-defined] # noqa: SLF001 - what an operator sees
    while (await client.info("clients"))["blocked_clients"] < count:  # noqa: ASYNC110 - Redis reports no event
        await trio.sleep(0.001)


@pytest.mark.parametrize("option", ["", "&ssl_cert_reqs=required", "&ssl_cert_reqs=optional"])
async def test_certificate_of_another_host_is_refused(tmp_path: Path, nursery: trio.Nursery, option: str) -> None:
    async def shake_hands(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.do_handshake()

    files = issue(tmp_path, "other.example")
    encryption = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    encryption.load_cert_chain(files.certificate, files.key)
    serve = partial(trio.serve_ssl_over_tcp, shake_hands, 0, encryption, host="127.0.0.1")
    [listener] = await nursery.start(serve)
    port = listener.transport_listener.socket.getsockname()[1]
    async with open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={files.authority}{option}") as store:
        with pytest.raises(StoreUnavailable, match=r"certificate is not valid for '127\.0\.0\.1'"):
            await store.bounds()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
async def test_check_of_the_host_name_can_be_turned_off(option: str) -> None:
    async with open_store(f"rediss://127.0.0.1?{option}") as store:
        context = store._client.connection_pool.connection_kwargs["ssl_context"]  # type: ignore[attr-defined] # noqa: SLF001 - coredis makes it
    assert not context.check_hostname


@pytest.mark.parametrize(
    "url, fault",
    [
        ("redis://:s3cret@127.0.0.1/inbox", "the database of Redis is a number, redis://HOST/NUMBER"),
        ("redis://:s3cret#@127.0.0.1", "the URL of Redis has no host (in a password write # / ? as %23 %2F %3F)"),
        ("redis://:s3cret?@127.0.0.1", "the URL of Redis has no host (in a password write # / ? as %23 %2F %3F)"),
        ("redis://:s3cret@127.0.0.1?max_connections=s3cret",
         'the URL of Redis cannot be used: an option after "?", or the URL itself, is not valid'),
        ("rediss://:s3cret@127.0.0.1?ssl_cert_reqs=s3cret",
         'the URL of Redis cannot be used: an option after "?", or the URL itself, is not valid'),
        ("rediss://:s3cret@127.0.0.1?ssl_ca_certs=/nowhere",
         "the URL of Redis cannot be used: No such file or directory"),
        ("redis://:s3cret[@127.0.0.1",
         'the URL of Redis cannot be used: an option after "?", or the URL itself, is not valid'),
    ],
)  # fmt: skip
async def test_url_that_cannot_be_used_is_one_fault_of_the_settings(url: str, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        async with open_store(url):
            raise AssertionError
    assert caught.value.faults == (f"log.url: {fault}",)


async def test_log_that_cannot_be_taken_over_is_named_with_the_reason(sqlite_application: Application) -> None:
    settings = sqlite_application.settings('[log]\nstore = "redis"\nurl = "redis://127.0.0.1:1"\n')
    soon = evolve(settings, database=evolve(settings.database, connect_timeout_s=0.01))
    with pytest.raises(StartError, match=r"log\.url: the event store cannot be used: .*Connection refused"):
        await adopt_log(soon)


async def test_missing_permission_is_refused_whatever_the_user_name(own_redis: RedisServer) -> None:
    async with open_store(own_redis.url) as store:
        await store._client.acl_setuser("ROOM", "on", ">s3cret", "~*", "+info")  # type: ignore[attr-defined] # noqa: SLF001 - what an operator does
    async with open_store(own_redis.url.replace("//", "//ROOM:s3cret@")) as store:
        with pytest.raises(RedisRefusedError, match=r"log\.url.*ROOM"):
            await store.bounds()


async def test_documented_rights_suffice(own_redis: RedisServer) -> None:
    [line] = parts("how-to/scale-out.md", "text")
    async with open_store(own_redis.url) as store:
        await store._client.acl_setuser(*line.split()[2:])  # type: ignore[attr-defined] # noqa: SLF001 - what an operator does
    async with open_store(own_redis.url.replace("//", "//airy:PASSWORD@")) as store:
        head = (await store.bounds()).head
        await store.append(head, [event(1)], "point", state=StateChange(generation="g"))
        await store.wait(head)
        assert not await store.fold("g", ["message.updated"], 10)
        claim = Claim("owner", "name", "token")
        assert await store.claim([claim]) == [None]
        assert not await store.acknowledge([Acknowledgement(claim, head.at(1))])
        assert await store.acknowledged("owner", "name") == head.at(1)
        assert await store.trim(age_s=1000, keep=0, limit=10, unused_s=1000) == 1


@pytest.mark.parametrize(
    "reply, raised",
    [
        ("@user_script: 12: -READONLY You can't write against a read only replica.", StoreUnavailable),
        ("@user_script:1: @user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.", StoreUnavailable),
        ("@user_script:3: WRONGTYPE Operation against a key holding the wrong kind of value", RedisRefusedError),
    ],
)
async def test_errors_in_scripts_before_redis_7_are_classified(reply: str, raised: type[Exception]) -> None:
    error = Parser().parse_error(f"ERR Error running script (call to f_ab12): {reply}")

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(raised):
        await answered(fail())


async def test_opening_a_store_does_not_change_logging(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("coredis")
    monkeypatch.setattr(logger, "level", logging.INFO)
    before = logger.level, list(logger.filters), list(logger.handlers)
    async with open_store(redis_server.url) as store:
        await store.bounds()
    assert (logger.level, logger.filters, logger.handlers) == before


def test_fields_have_the_order_that_the_scripts_expect() -> None:
    assert FIELDS[0] == "at"  # TRIM compares the first value
