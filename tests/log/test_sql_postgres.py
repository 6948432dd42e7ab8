"""The ``sql`` store in Postgres: its fence, its connections, poolers, and a server that hangs."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import partial

import psycopg
import pytest
import sqlalchemy as sa
import trio
import trio.testing
from attrs import evolve
from psycopg import sql
from structlog.testing import capture_logs

from airy_trio.database import FENCE_CLASS, Database, DatabaseOptions, DatabaseRefused, Names, postgres_engine
from airy_trio.database.postgres import SLICE_ROWS, MonitoredConnection, Parameter, Pipeline, Row, Statement
from airy_trio.events.destinations import EVERYTHING, Destination, OfChannel, OfConversation, OfType, Within
from airy_trio.log.sql import PostgresStore, postgres
from airy_trio.log.sql.postgres import (
    CONNECTIONS_MAX,
    COPY_FROM,
    PATIENCE_FIRST_S,
    Notifications,
)
from airy_trio.log.sql.tables import PostgresTables
from airy_trio.log.store import (
    Acknowledgement,
    Claim,
    EventStore,
    NewEvent,
    Position,
    StaleAppend,
    StateAt,
    StateChange,
    StoreUnavailable,
    new_epoch,
)
from airy_trio.migrate import migrate_log
from airy_trio.testing.event_store import check_event_store
from tests.log.places import event, fold, open_postgres, open_sql, postgres_places
from tests.pgbouncer import through
from tests.postgres import PASSWORD_ROLE, Postgres
from tests.stalling_proxy import stalling

STATE = "airy_trio.log_state"
LOCK = f"{FENCE_CLASS}, '{STATE}'::regclass::oid::int"
OURS = "from pg_stat_activity where application_name = 'airy-trio' and datname = current_database()"
CUT = f"select count(pg_terminate_backend(pid, 5000)) {OURS}"
WAITING = f"select count(*) {OURS} and wait_event_type = 'Lock'"
ENTER = f"select pg_advisory_xact_lock({LOCK}), * from {STATE} for update"

Other = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
async def store(postgres_database: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres(postgres_database) as opened:
        assert isinstance(opened, PostgresStore)
        yield opened


@pytest.fixture
def locking(postgres_database: str) -> Iterator[Other]:
    """Yield a connection in a transaction. Within it, ``pg_stat_activity`` would never change."""
    with psycopg.connect(conninfo(postgres_database)) as connection:
        yield connection


@pytest.fixture
def other(postgres_database: str) -> Iterator[Other]:
    with psycopg.connect(conninfo(postgres_database), autocommit=True) as connection:
        yield connection


def conninfo(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


async def until(other: Other, query: str, count: int) -> None:
    with trio.fail_after(10):
        while other.execute(query).fetchone() != (count,):  # noqa: ASYNC110 - Postgres has no event for this
            await trio.sleep(0.01)


def events(count: int) -> list[NewEvent]:
    return [event(number) for number in range(1, count + 1)]


@pytest.mark.parametrize(
    "new",
    [
        [],
        [event(1, object="\0\1ü", conversation_id="c\0\1", channel_id=None)],
        [event(1, object="tag:" + "x" * 5000, conversation_id="", channel_id="\1"), event(2, channel_id=None)],
        [NewEvent("t", "o", None, None, bytes(range(256)), truncated=True, age_ms=-1)],
        [NewEvent("t", "o", None, None, b"x" * 20_000_000, age_ms=2**40), event(2)],
        events(COPY_FROM - 1),
        events(COPY_FROM),
        [
            NewEvent("t", f"\0ü{number}", (None, "\1", "")[number % 3], None, bytes([number % 256]) * 3000, age_ms=-1)
            for number in range(COPY_FROM + 1)
        ],
    ],
    ids=["none", "escaped", "long", "octets", "large", "the most without COPY", "COPY", "octets by COPY"],
)
async def test_appended_events_are_read_unchanged(store: EventStore, new: list[NewEvent]) -> None:
    head = (await store.bounds()).head
    stored = await store.append(head, new, "point")
    assert list(await store.read(head, 10_000)) == stored
    assert [one.offset for one in stored] == list(range(1, len(new) + 1))
    assert [NewEvent(*one[2:]) for one in stored] == new
    assert await store.resume_point() == "point"


async def test_stale_append_by_copy_writes_nothing(store: EventStore) -> None:
    head, count = (await store.bounds()).head, COPY_FROM
    change = StateChange(generation="first0")
    stored = await store.append(head, [event(number) for number in range(count)], "point", state=change)
    await fold(store)
    for ends in ({"ended": ["message:1"]}, {"swept": {"message.updated": 5}}):
        with pytest.raises(StaleAppend):
            await store.append(head, [event(number) for number in range(count)], "other", state=evolve(change, **ends))
    assert (await store.bounds()).last == count
    assert await store.resume_point() == "point"
    assert await store.current(StateAt("first0", head.at(count)), head, 2 * count, EVERYTHING) == stored


async def test_copy_that_the_server_rejects_leaves_nothing(store: EventStore, other: Other) -> None:
    """Postgres rejects a row in the middle, when it already has parts of the data."""
    other.execute("alter table airy_trio.event_log add constraint odd check (object <> 'odd')")
    head = (await store.bounds()).head
    many = events(3 * COPY_FROM)
    many[COPY_FROM] = event(1, object="odd")
    with pytest.raises(DatabaseRefused, match="odd"):
        await store.append(head, many, "point")
    assert (await store.bounds()).head == head
    assert len(await store.append(head, events(COPY_FROM), "point")) == COPY_FROM


async def test_cancelled_copy_has_an_effect_completely_or_not_at_all(store: EventStore) -> None:
    head = (await store.bounds()).head
    outcomes = set()
    for number in range(40):
        # A cancelled append may take effect after the bounds were read; the next append is then stale.
        with trio.move_on_after(number * 0.002), suppress(StaleAppend):
            await store.append(head, events(COPY_FROM), "point")
        with trio.fail_after(10):
            last = (await store.bounds()).last
            while (found := len(await store.read(head, 2 * COPY_FROM))) != last - head.offset:
                last = (await store.bounds()).last
        assert found in {0, COPY_FROM}
        outcomes.add(found)
        head = head.at(last)
    assert outcomes == {0, COPY_FROM}


async def test_each_destination_is_read_by_its_own_statement(store: EventStore) -> None:
    head = (await store.bounds()).head
    for number in range(3):
        new = event(number, channel_id=f"ch{number}", conversation_id=f"c{number}", type=f"t{number}")
        head = head.at((await store.append(head, [new], "point"))[-1].offset)
    for number in (1, 2):
        channels = frozenset({f"ch{number}", "ch9"})
        wide = EVERYTHING, OfConversation(f"c{number}"), OfType(f"t{number}")
        destinations: list[Destination] = [
            OfChannel(f"ch{number}"),
            *wide[1:],
            *(Within(one, channels) for one in wide),
        ]
        for destination in destinations:
            assert [found.offset for found in await store.read(head.at(0), 9, destination)] == [number + 1]
            newest = await store.newest(head, destination)
            assert newest is not None
            assert newest.offset == number + 1


@pytest.fixture
def hanging(postgres_database: str) -> Iterator[None]:
    """A session in the middle of an append that waits for rows that never arrive, as from a frozen process."""
    migrate_log(postgres_database, DatabaseOptions(url=postgres_database))
    with psycopg.connect(conninfo(postgres_database)) as connection:
        connection.execute("set idle_in_transaction_session_timeout = '50ms'")  # has no effect during a COPY
        connection.execute(ENTER)
        connection.pgconn.exec_(b"copy airy_trio.event_log from stdin")
        yield
        connection.close()


@pytest.mark.usefixtures("hanging")
async def test_next_append_ends_the_session_that_hangs(postgres_database: str) -> None:
    async with open_sql(DatabaseOptions(url=postgres_database)) as store:
        head = (await store.bounds()).head
        with trio.fail_after(10):
            with capture_logs() as logs, pytest.raises(StoreUnavailable, match=r"did not end within 0\.15 s"):
                await store.append(head, [event(1)], "point")
            assert [line["event"] for line in logs] == ["ended the database session of an append that hung"]
            assert [stored.offset for stored in await store.append(head, [event(1)], "point")] == [1]
            assert await store.resume_point() == "point"


@pytest.mark.usefixtures("hanging")
async def test_session_of_another_role_that_hangs_is_an_outage(postgres: Postgres, postgres_database: str) -> None:
    with psycopg.connect(conninfo(postgres_database)) as owner:
        owner.execute(f"grant usage on schema airy_trio to {PASSWORD_ROLE}")
        owner.execute(f"grant select, update, insert on all tables in schema airy_trio to {PASSWORD_ROLE}")
    url = postgres.password_url(sa.make_url(postgres_database).database or "")
    async with open_sql(DatabaseOptions(url=url)) as store:
        with trio.fail_after(10), pytest.raises(StoreUnavailable, match="not end that session: InsufficientPrivilege"):
            await store.append((await store.bounds()).head, [event(1)], "point")
        assert isinstance(store, PostgresStore)
        assert store.patience_s == PATIENCE_FIRST_S


@pytest.mark.usefixtures("hanging")
async def test_new_epoch_ends_the_session_that_hangs(postgres_database: str) -> None:
    async with open_sql(DatabaseOptions(url=postgres_database)) as store:
        head = (await store.bounds()).head
        with trio.fail_after(10):
            with pytest.raises(StoreUnavailable):
                await store.begin_epoch(head, "point")
            assert (await store.begin_epoch(head, "point")).epoch != head.epoch


@pytest.mark.parametrize("count", [0, 1, COPY_FROM])
async def test_slow_append_that_ends_in_time_is_left_alone(
    store: EventStore, other: Other, locking: Other, count: int
) -> None:
    head = (await store.bounds()).head
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with locking.transaction():
                locking.execute(ENTER)
                nursery.start_soon(store.append, head, events(count), "point")
                await trio.sleep(PATIENCE_FIRST_S / 3)  # the append waits meanwhile
                assert other.execute(WAITING).fetchone() == (0,)  # and has locked nothing
    assert (await store.bounds()).last == count
    assert await store.resume_point() == "point"


async def test_session_that_leaves_by_itself_is_no_outage(store: EventStore, locking: Other) -> None:
    head = (await store.bounds()).head
    await store.append(head, [], "point")  # opens the connection
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with locking.transaction():
                locking.execute(ENTER)
                nursery.start_soon(store.append, head, [event(1)], "point")
                await trio.testing.wait_all_tasks_blocked()  # the append has been sent
                # This process stalls beyond its patience before it reads that another session is inside.
                time.sleep(2 * PATIENCE_FIRST_S)  # noqa: ASYNC251
    assert (await store.bounds()).last == 1


async def test_patience_doubles_until_an_append_succeeds(
    store: PostgresStore, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slow writers must stop ending each other's sessions."""
    monkeypatch.setattr(postgres, "PATIENCE_MAX_S", 3 * PATIENCE_FIRST_S)
    head = (await store.bounds()).head
    for times in (2, 3, 3):
        with psycopg.connect(conninfo(postgres_database), autocommit=True) as hanging:
            hanging.execute(f"select pg_advisory_lock({LOCK})")
            with pytest.raises(StoreUnavailable):
                await store.append(head, [], "point")
        assert store.patience_s == times * PATIENCE_FIRST_S
    store.patience_s = 10.0  # the session that was ended may hold its lock for a moment
    await store.append(head, [], "point")
    assert store.patience_s == PATIENCE_FIRST_S


@pytest.mark.parametrize("count", [1, COPY_FROM])
async def test_append_is_inside_the_fence(store: EventStore, other: Other, postgres_database: str, count: int) -> None:
    """So the next writer can end its session wherever it hangs."""
    head = (await store.bounds()).head
    with trio.fail_after(10):
        with pytest.RaisesGroup(StoreUnavailable):
            async with trio.open_nursery() as nursery:
                with psycopg.connect(conninfo(postgres_database)) as blocking:
                    blocking.execute(f"select 1 from {STATE} for update")
                    nursery.start_soon(store.append, head, events(count), "point")
                    await until(other, WAITING, 1)
                    assert other.execute(f"select pg_try_advisory_xact_lock({LOCK})").fetchone() == (False,)
                    other.execute(f"{CUT} and wait_event_type = 'Lock'")
        await store.append(head, [event(1)], "point")
    assert (await store.bounds()).last == 1


async def test_two_concurrent_appends_are_both_compared(store: EventStore) -> None:
    head = (await store.bounds()).head
    with pytest.RaisesGroup(StaleAppend, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(store.append, head, [event(number)], str(number))
    assert (await store.bounds()).last == 1


async def test_every_write_is_on_disk_whatever_the_server_default(
    postgres_database: str, store: EventStore, other: Other
) -> None:
    other.execute(f"alter database {sa.make_url(postgres_database).database} set synchronous_commit = off")
    head = (await store.bounds()).head
    claim = Claim("ann", "phone", "token")
    flushed = {"append": 0, "claim": 0, "acknowledge": 0, "begin": 0}
    for number in range(20):
        for verb in flushed:
            match verb:
                case "append":
                    head = head.at((await store.append(head, [event(number)], "point"))[-1].offset)
                case "claim":
                    await store.claim([claim])
                case "acknowledge":
                    await store.acknowledge([Acknowledgement(claim, head)])
                case _:
                    head = (await store.begin_epoch(head, "point")).head
            found = other.execute("select pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()").fetchone()
            flushed[verb] += found == (True,)
    # The server may write WAL in between; with an asynchronous commit it is hardly ever on disk.
    assert min(flushed.values()) > 10, flushed


async def test_missing_tables_are_refused(postgres_database: str) -> None:
    async with open_sql(DatabaseOptions(url=postgres_database)) as store:
        with pytest.raises(DatabaseRefused):
            await store.append(Position(new_epoch(), 0), [event(1)], "point")


async def test_connections_lost_while_idle_are_no_outage(store: EventStore, other: Other) -> None:
    head = (await store.bounds()).head
    head = head.at((await store.append(head, [event(1)], "point"))[-1].offset)
    await store.read(head, 1, OfChannel("ch1"))
    other.execute(CUT)
    assert [one.offset for one in await store.append(head, [event(2)], "point")] == [2]
    other.execute(CUT)
    assert [one.offset for one in await store.read(head, 9)] == [2]
    assert [one.offset for one in await store.read(head, 9, OfChannel("ch1"))] == [2]


async def test_outage_found_by_a_read_is_not_reported_again_by_the_wait(
    store: PostgresStore, other: Other, postgres: Postgres, postgres_database: str
) -> None:
    head = (await store.bounds()).head
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.wait, head)
        await until(other, f"select count(*) {OURS} and query like 'listen%'", 1)
        nursery.cancel_scope.cancel()
    database = sql.Identifier(sa.make_url(postgres_database).database or "")
    postgres.execute(sql.SQL("alter database {} allow_connections false").format(database))
    other.execute(CUT)
    with pytest.raises(StoreUnavailable):
        await store.bounds()
    postgres.execute(sql.SQL("alter database {} allow_connections true").format(database))
    with trio.move_on_after(0.2):
        await store.wait(head)  # its connection was lost as well


async def test_head_that_moves_without_a_notification_is_found(
    store: PostgresStore, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notification may be lost in the network, and a connection may be dead without an error."""
    monkeypatch.setattr(postgres, "POLL_NOTIFIED_S", 0.05)
    head = (await store.bounds()).head
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.wait, head)
            await until(other, f"select count(*) {OURS} and query like 'listen%'", 1)
            head = head.at((await store.append(head, [event(1)], "point"))[-1].offset)
        other.execute(f"update {STATE} set last = last + 1")
        await store.wait(head)


async def test_cancelled_verbs_leave_neither_statement_nor_connection(
    store: PostgresStore, other: Other, locking: Other
) -> None:
    head = (await store.bounds()).head
    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: store.read(head, 9),
        lambda: store.newest(head, OfChannel("ch1")),
        lambda: store.append(head, [event(1)], "point"),
        lambda: store.trim(age_s=0, keep=0, limit=9, unused_s=0),
    ]
    for verb in verbs:
        with locking.transaction():
            locking.execute(f"lock table {STATE}, airy_trio.event_log")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(verb)
                await until(other, WAITING, 1)
                with trio.fail_after(1):
                    nursery.cancel_scope.cancel()
                    await trio.lowlevel.checkpoint_if_cancelled()
            await until(other, WAITING, 0)  # although the lock is still held
    assert (await store.bounds()).last == 0
    await store.aclose()
    await until(other, f"select count(*) {OURS}", 0)


async def test_wait_cancelled_while_connecting_still_listens_later(postgres_database: str, other: Other) -> None:
    notifications = Notifications(postgres_engine(postgres_database, connect_timeout_s=5), "here")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifications.wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await until(other, f"select count(*) {OURS}", 1)  # opened by a thread that nothing waits for
    with trio.fail_after(5):
        while await notifications.wait() != "there":
            other.execute("notify here, 'there'")
    await notifications.aclose()


async def test_more_units_than_connections_wait_in_turn(store: EventStore, other: Other, locking: Other) -> None:
    head = (await store.bounds()).head
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with locking.transaction():
                locking.execute(f"lock table {STATE}")
                for _ in range(3 * CONNECTIONS_MAX):
                    nursery.start_soon(store.read, head, 1)
                await until(other, WAITING, CONNECTIONS_MAX)
    assert other.execute(f"select count(*) {OURS}").fetchone() == (CONNECTIONS_MAX,)


async def test_large_appends_and_reads_let_other_tasks_run(store: EventStore) -> None:
    head = (await store.bounds()).head
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await store.append(head, events(10 * SLICE_ROWS), "point")
        assert ticks > 7
        ticks = 0
        assert len(await store.read(head, 10_000)) == 10 * SLICE_ROWS
        assert ticks >= 10
        nursery.cancel_scope.cancel()


async def test_server_that_hangs_is_noticed(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MonitoredConnection, "answer_timeout_s", 0.3)
    await trio.to_thread.run_sync(migrate_log, postgres_database, DatabaseOptions(url=postgres_database))
    async with stalling(postgres_database) as proxy:
        options = DatabaseOptions(url=proxy.url, connect_timeout_s=1)
        async with open_sql(options) as store:
            assert isinstance(store, PostgresStore)
            verbs: list[Callable[[Position], Awaitable[object]]] = [
                lambda head: store.append(head, [event(1)], "point"),
                lambda head: store.append(head, events(5000), "point"),
                lambda head: store.read(head, 9),
                lambda head: store.read(head, 9, OfChannel("ch1")),
            ]
            for verb in verbs:
                with trio.fail_after(10):
                    head = (await store.bounds()).head
                    proxy.stall()
                    with pytest.raises(StoreUnavailable):
                        await verb(head)
                    proxy.flow()
            with trio.fail_after(10):
                proxy.stall()
                await store.aclose()
                proxy.flow()


async def test_time_limit_of_the_role_holds(
    store: PostgresStore, other: Other, locking: Other, postgres_database: str
) -> None:
    other.execute(f"alter database {sa.make_url(postgres_database).database} set statement_timeout = '50ms'")
    head = (await store.bounds()).head
    await store.aclose()
    with trio.fail_after(10), locking.transaction():
        locking.execute(f"lock table {STATE}")
        with pytest.raises(StoreUnavailable, match="57014"):
            await store.read(head, 9)


async def test_database_without_encoding_stores_any_text(own_postgres: Postgres) -> None:
    own_postgres.execute(psycopg.sql.SQL("create database ascii encoding 'SQL_ASCII' locale 'C' template template0"))
    url = own_postgres.url("ascii")
    async with open_postgres(url) as store:
        head = (await store.bounds()).head
        new = [event(1, object="message:ü\0", conversation_id="日本", channel_id="ß")]
        stored = await store.append(head, new, "point ü")
        assert list(await store.read(head, 9, OfChannel("ß"))) == stored
        assert await store.resume_point() == "point ü"
        claim = Claim("änn", "phöne", "token")
        assert await store.claim([claim]) == [None]
        assert await store.acknowledge([Acknowledgement(claim, head)]) == []
        assert await store.acknowledged("änn", "phöne") == head


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_store_conforms_behind_a_pooler(postgres_database: str, pgbouncer: int) -> None:
    """Clients' reads go through PgBouncer in transaction mode, so nothing may be prepared or kept in a session."""
    await check_event_store(postgres_places(postgres_database, through(postgres_database, pgbouncer)))


async def test_pooled_reads_leave_nothing_in_the_session(postgres_database: str, pgbouncer: int) -> None:
    pooled = Database(postgres_engine(through(postgres_database, pgbouncer), connect_timeout_s=5, pooled=True))
    direct = Database(postgres_engine(postgres_database, connect_timeout_s=5))
    await trio.to_thread.run_sync(migrate_log, postgres_database, DatabaseOptions(url=postgres_database))
    store = PostgresStore(Names.of(postgres_database, "airy_trio"), pooled, direct)
    head = (await store.bounds()).head
    await store.append(head, [], "one", state=StateChange(generation="first0"))
    changed = "select setting from pg_settings where name in ('enable_sort', 'plan_cache_mode') order by name"
    before = await pooled.run(lambda connection: connection.exec_driver_sql(changed).scalars().all())
    for _ in range(8):
        await store.read(head, 9, OfChannel("ch1"))
        await store.current(StateAt("first0", head), head, 9, OfChannel("ch1"))
        await store.newest(head, OfConversation("c1"))
    prepared = "select count(*), (select count(*) from pg_listening_channels()) from pg_prepared_statements"
    assert await pooled.run(lambda connection: tuple(connection.exec_driver_sql(prepared).one())) == (0, 0)
    assert await pooled.run(lambda connection: connection.exec_driver_sql(changed).scalars().all()) == before
    await store.aclose()


STATE_ROWS = 20_000


async def scanned(url: str, work: Callable[[EventStore], Awaitable[object]]) -> int:
    """Return how many rows of a large current state some work with a store reads, in scans and by indexes."""
    rows = "select seq_tup_read + coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = 'log_current'"
    with psycopg.connect(conninfo(url), autocommit=True) as other:
        async with open_postgres(url):
            other.execute(
                "insert into airy_trio.log_current select decode(md5(n::text), 'hex'), 'first0', n, 0, "
                "'message.updated', 'message:' || n, 'c' || n, 'ch' || n, '', false, null "
                "from generate_series(1, %s) n",
                [STATE_ROWS],
            )
            other.execute(
                f"update {STATE} set last = %s, first = %s + 1, folded = %s, generation = 'first0', marks = ''",
                [STATE_ROWS] * 3,
            )
            other.execute(f"update {STATE} set state_at = '2 ' || epoch || '-' || last || ' '")
            other.execute("vacuum analyze airy_trio.log_current")
        await until(other, f"select count(*) {OURS}", 0)
        (before,) = other.execute(rows).fetchone() or (0,)
        async with open_postgres(url) as store:
            await work(store)
        await until(other, f"select count(*) {OURS}", 0)  # a session counts its reads at the latest when it ends
        (after,) = other.execute(rows).fetchone() or (0,)
    assert isinstance(before, int)
    assert isinstance(after, int)
    return after - before


async def test_a_fold_reads_only_the_objects_that_it_changes(postgres_database: str) -> None:
    async def work(store: EventStore) -> None:
        head = (await store.bounds()).head
        for number in range(10):
            change = StateChange(generation="first0", ended=(f"message:{number + 50}",))
            await store.append(head, [event(number)], f"point {number}", state=change)
            head = head.at(head.offset + 1)
            await fold(store)

    assert await scanned(postgres_database, work) <= 100


async def test_a_conversation_with_few_objects_is_found_by_its_index(postgres_database: str) -> None:
    none = OfConversation("none")

    async def work(store: EventStore) -> None:
        head = (await store.bounds()).head
        for limit in (*[1] * 6, 500):  # Postgres may keep a plan from the sixth time on
            assert not await store.current(StateAt("first0", head), head.at(0), limit, none, bytes_max=1000)

    assert await scanned(postgres_database, work) <= 100


def test_old_versions_of_the_state_are_not_read(postgres_database: str, locking: Other, other: Other) -> None:
    """A dump or a report of an hour keeps Postgres from removing the versions that each append leaves."""
    migrate_log(postgres_database, DatabaseOptions(url=postgres_database))
    locking.execute("set transaction isolation level repeatable read")
    locking.execute("select 1")
    other.execute(f"do $$ begin for number in 1..5000 loop update {STATE} set last = number; end loop; end $$")
    bounds = PostgresTables(Names.of(postgres_database, "airy_trio")).bounds.compile(
        dialect=sa.make_url(postgres_database).get_dialect()(), compile_kwargs={"literal_binds": True}
    )
    (plan,) = other.execute(f"explain (analyze, buffers, format json) {bounds}").fetchone() or ("",)
    assert isinstance(plan, list)
    assert plan[0]["Plan"]["Shared Hit Blocks"] < 10  # of more than 50


@pytest.mark.parametrize(
    "destination",
    [EVERYTHING, OfType("message.updated"), OfChannel("ch1"), Within(EVERYTHING, frozenset({"ch1", "ch2"}))],
)
async def test_pages_are_read_in_order_before_the_first_statistics(
    postgres_database: str, other: Other, destination: Destination
) -> None:
    rows = "select idx_tup_fetch + seq_tup_read from pg_stat_user_tables where relname = 'log_current'"
    counted = []
    async with open_postgres(postgres_database) as store:
        other.execute("alter table airy_trio.log_current set (autovacuum_enabled = false)")
        other.commit()
        head, change = (await store.bounds()).head, StateChange(generation="first0")
        await store.append(head, [event(number) for number in range(5000)], "one", state=change)
        await fold(store, limit=5000)
    for pages in (0, 10):
        async with open_postgres(postgres_database) as store:
            for after in range(0, 100 * pages, 100):
                state = StateAt("first0", head.at(5000))
                assert len(await store.current(state, head.at(after), 100, destination, bytes_max=10**6)) == 100
        await until(other, f"select count(*) {OURS}", 0)  # a session counts its reads at the latest when it ends
        [[read]] = other.execute(rows).fetchall()
        assert isinstance(read, int | Decimal)
        counted.append(read)
        other.commit()
    assert 1000 <= counted[1] - counted[0] <= 2000


async def test_rows_beyond_bytes_max_stay_in_the_database(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, change = (await store.bounds()).head, StateChange(generation="first0")
    await store.append(head, [event(number) for number in range(20)], "one", state=change)
    await fold(store)
    counts: list[int] = []
    run = Pipeline.run

    async def counted(pipeline: Pipeline, *statements: tuple[Statement, Sequence[Parameter]]) -> list[list[Row]]:
        found = await run(pipeline, *statements)
        counts.extend(map(len, found))
        return found

    monkeypatch.setattr(Pipeline, "run", counted)
    for destination in (None, OfChannel("ch1")):
        await store.read(head, 20, destination, bytes_max=1)
        await store.current(StateAt("first0", head.at(20)), head, 20, destination, bytes_max=1)
    assert max(counts) == 1


async def test_fold_does_not_wait_for_an_append_that_ends_the_same_objects(
    store: PostgresStore, locking: Other, other: Other
) -> None:
    """The append waits for rows of the fold and has others, so a fold that waited for those would be a deadlock."""
    head, change = (await store.bounds()).head, StateChange(generation="first0", ended=["message:1", "message:2"])
    await store.append(head, [event(1), event(2), event(3)], "one", state=change)
    ended = "select digest from airy_trio.log_ended order by digest"
    [(locked,), _] = other.execute(ended).fetchall()
    locking.execute("select 1 from airy_trio.log_ended where digest = %s for update", [locked])
    with trio.fail_after(10):
        for _ in range(3):
            await store.fold("first0", {"message.updated"}, 10)
    assert other.execute(ended).fetchall() == [(locked,)]
    locking.rollback()


async def test_trim_does_not_delete_an_object_just_folded(store: PostgresStore, locking: Other, other: Other) -> None:
    """The row belonged to an earlier generation when the scan of the trim began."""
    head = (await store.bounds()).head
    await store.append(head, [event(1), event(2)], "one", state=StateChange(generation="first0"))
    await fold(store)
    await store.append(head.at(2), [event(3)], "two", state=StateChange(generation="second"))
    await fold(store, "second")
    locking.execute("update airy_trio.log_current set generation = 'second' where object = 'message:1'")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(store.trim, age_s=60, keep=100, limit=100, unused_s=60))
            await trio.sleep(0.3)
            locking.commit()
    left = other.execute("select object from airy_trio.log_current order by object").fetchall()
    assert left == [("message:1",), ("message:3",)]
