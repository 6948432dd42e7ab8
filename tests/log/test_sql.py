"""Properties of the ``sql`` store alone: durability, a clock that was set back, notifications, other names."""

import re
import socket
import string
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from sqlalchemy.dialects import postgresql, sqlite

from airy_trio.database import DatabaseOptions, DatabaseRefused, Names, postgres_engine, sqlite_engine, sqlite_path
from airy_trio.database.postgres import Parameter, Pipeline, Row, Statement
from airy_trio.events.destinations import OfChannel, OfConversation
from airy_trio.events.models import STATE_TYPES
from airy_trio.log.event_log import EventLog
from airy_trio.log.options import LogOptions
from airy_trio.log.sql.postgres import POLL_NOTIFIED_S, Notifications
from airy_trio.log.sql.tables import FOLD_BYTES, log_tables, values_of
from airy_trio.log.store import Acknowledgement, Claim, EventStore, Position, StateChange, StoreUnavailable
from airy_trio.migrate import migrate_log
from tests.log.places import event, fold, migrate_new_file, open_sql


@pytest.fixture(params=["sqlite", "postgres"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseOptions:
    url = f"sqlite:///{tmp_path}/e.db" if request.param == "sqlite" else request.getfixturevalue("postgres_database")
    made = DatabaseOptions(url=url, schema="other_name")
    if request.param == "sqlite":
        migrate_new_file(made)
    else:
        migrate_log(url, made)
    return made


def execute(options: DatabaseOptions, statement: str) -> list[tuple[object, ...]]:
    """Execute a statement on a connection of its own; ``{}`` is the state's table, the others have names."""
    names = Names.of(options.url, options.schema)
    postgres = options.url.startswith("postgres")
    engine = postgres_engine(options.url, connect_timeout_s=5) if postgres else sqlite_engine(sqlite_path(options.url))
    try:
        with engine.begin() as connection:
            formatted = statement.format(
                names.quoted("log_state"), current=names.quoted("log_current"), ended=names.quoted("log_ended")
            )
            result = connection.execute(sa.text(formatted))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


async def test_append_times_never_fall_when_the_clock_is_set_back(options: DatabaseOptions) -> None:
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        future_ms = (await store.bounds()).now_ms + 3_600_000
        await trio.to_thread.run_sync(execute, options, f"update {{}} set appended_at_ms = {future_ms}")
        (stored,) = await store.append(head, [event(1)], "point")
        assert stored.appended_at_ms == future_ms


@pytest.mark.parametrize("moved", ["last = last + 1", "resume_point = 'two'"])
async def test_append_of_an_older_server_ends_the_state(options: DatabaseOptions, moved: str) -> None:
    """It knows of no state, and so leaves the columns of the state unchanged."""
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        await store.append(head, [event(1)], "one", state=StateChange(generation="first0"))
        assert (await store.bounds()).state is not None
        await trio.to_thread.run_sync(execute, options, f"update {{}} set {moved}")
        assert (await store.bounds()).state is None


async def test_state_that_lacks_trimmed_events_counts_as_missing(options: DatabaseOptions) -> None:
    """A recorder without a state has appended in between, and the one before continues its own."""
    async with open_sql(options) as store:
        head, state = (await store.bounds()).head, StateChange(generation="first0")
        await store.append(head, [event(1), event(2)], "one", state=state)
        await store.append(head.at(2), [], "one")
        await store.trim(age_s=3600, keep=1, limit=10, unused_s=3600)
        await store.append(head.at(2), [event(3)], "two", state=state)
        assert (await store.bounds()).state is None


async def test_nothing_is_left_of_objects_that_have_ended(options: DatabaseOptions) -> None:
    async with open_sql(options) as store:
        head, names = (await store.bounds()).head, [event(number).object for number in range(20)]
        change = StateChange(generation="first0", ended=names)
        await store.append(head, [event(number) for number in range(20)], "one", state=StateChange(generation="first0"))
        await fold(store, limit=5)
        await store.append(head.at(20), [event(number) for number in range(20)], "two", state=change)
        await fold(store, limit=5)
        assert [execute(options, f"select 1 from {{{table}}}") for table in ("current", "ended")] == [[], []]


async def test_large_events_are_folded_in_parts_and_none_is_left_out(options: DatabaseOptions) -> None:
    async with open_sql(options) as store:
        head, body = (await store.bounds()).head, b"x" * (FOLD_BYTES // 2)
        large = [event(number)._replace(body=body) for number in range(5)]
        await store.append(head, large, "one", state=StateChange(generation="first0"))
        folded = []
        for _ in range(3):
            await store.fold("first0", STATE_TYPES, 250)
            folded.append(len(execute(options, "select 1 from {current}")))
    assert folded == [2, 4, 5]


async def test_trims_delete_former_generations_in_slices(options: DatabaseOptions) -> None:
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        for generation in ("first0", "second", "third0"):
            change = StateChange(generation=generation)
            await store.append(head, [event(head.offset + number) for number in range(5)], "point", state=change)
            await fold(store, generation)
            head = head.at(head.offset + 5)
        left = []
        for _ in range(8):
            await store.trim(age_s=3600, keep=100, limit=2, unused_s=3600)
            left.append(len(execute(options, "select 1 from {current}")))
    assert left == [13, 11, 10, 8, 6, 5, 5, 5]


async def test_own_file_is_in_wal_mode(tmp_path: Path) -> None:
    options = DatabaseOptions(url=f"sqlite:///{tmp_path}/e.db")
    migrate_log(options.url, options)
    async with open_sql(options) as store:
        await store.append((await store.bounds()).head, [event(1)], "point")
    assert execute(options, "pragma journal_mode") == [("wal",)]
    assert (tmp_path / "e.db").stat().st_mode & 0o777 == 0o600


async def wake_up_times(options: DatabaseOptions, count: int) -> list[float]:
    """Return how long each of several appends took to wake a task that waits on another node."""
    took_s = []
    async with open_sql(options) as writer, open_sql(options) as reader:
        head = (await writer.bounds()).head
        for number in range(count):
            started = trio.Event()
            woken: list[float] = []

            async def wait(head: Position, started: trio.Event, woken: list[float]) -> None:
                started.set()
                await reader.wait(head)
                woken.append(trio.current_time())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, head, started, woken)
                await started.wait()
                await trio.sleep(0.1)  # until it waits for a notification
                begun_at = trio.current_time()
                head = head.at((await writer.append(head, [event(number)], "point"))[-1].offset)
            took_s.append(woken[0] - begun_at)
    return took_s


async def test_append_on_postgres_wakes_a_waiting_node(postgres_database: str) -> None:
    options = DatabaseOptions(url=postgres_database)
    await trio.to_thread.run_sync(migrate_log, options.url, options)
    took_s = await wake_up_times(options, 6)
    assert min(took_s[1:]) < POLL_NOTIFIED_S / 4  # after the first notification the store is polled no more often


@pytest.fixture
def queried_at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the times at which a pipeline of statements is sent to Postgres."""
    times: list[float] = []
    run = Pipeline.run

    async def recorded(pipeline: Pipeline, *statements: tuple[Statement, Sequence[Parameter]]) -> list[list[Row]]:
        times.append(trio.current_time())
        return await run(pipeline, *statements)

    monkeypatch.setattr(Pipeline, "run", recorded)
    return times


async def test_notified_head_on_postgres_needs_no_query(postgres_database: str, queried_at: list[float]) -> None:
    options = DatabaseOptions(url=postgres_database)
    await trio.to_thread.run_sync(migrate_log, options.url, options)
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        for number in range(4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.wait, head)
                await trio.sleep(0.1)  # until it listens
                queried_at.clear()
                head = head.at((await store.append(head, [event(number)], "point"))[-1].offset)
    assert len(queried_at) == 1, "the append"


async def test_idle_store_on_postgres_is_seldom_polled(postgres_database: str, queried_at: list[float]) -> None:
    options = DatabaseOptions(url=postgres_database)
    await trio.to_thread.run_sync(migrate_log, options.url, options)
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        with trio.move_on_after(2 * POLL_NOTIFIED_S):
            await store.wait(head)
    assert len(queried_at) <= 10, "some at the beginning, then one a second"


_END_LISTENING = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where query like 'listen %' and datname = current_database()"
)


async def test_lost_listening_connection_is_reported_and_opened_again(postgres_database: str) -> None:
    options = DatabaseOptions(url=postgres_database)
    await trio.to_thread.run_sync(migrate_log, options.url, options)
    async with open_sql(options) as writer, open_sql(options) as reader:
        head = (await writer.bounds()).head
        for number in range(4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.wait, head)
                await trio.sleep(0.1)
                head = head.at((await writer.append(head, [event(number)], "point"))[-1].offset)
            with pytest.RaisesGroup(pytest.RaisesExc(StoreUnavailable, match="lost")):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader.wait, head)
                    await trio.sleep(0.1)
                    assert await trio.to_thread.run_sync(execute, options, _END_LISTENING) == [(True,)]


@pytest.mark.slow
async def test_waiting_on_an_unresponsive_server_can_be_cancelled() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable"
        notifications = Notifications(postgres_engine(url, connect_timeout_s=60), "airy_trio_log")
        with trio.fail_after(3), trio.move_on_after(0.1) as given_up:
            await notifications.wait()
        assert given_up.cancelled_caught
        with trio.fail_after(3):
            await notifications.aclose()


async def test_events_replaced_during_a_lost_connection_begin_an_epoch(postgres_database: str) -> None:
    """A standby server is promoted without the last commit, and another node appends before this one reads."""
    options = DatabaseOptions(url=postgres_database)
    await trio.to_thread.run_sync(migrate_log, options.url, options)
    table = Names.of(options.url, options.schema).quoted("event_log")
    replaced = f"update {table} set body = 'another' where \"offset\" = 2"
    async with open_sql(options) as store, open_sql(options) as other:
        log = EventLog(store, LogOptions())
        await log.open()
        was = log.epoch
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.follow)
            head = await log.append(log.head, [event(1), event(2)], "point")
            await trio.sleep(0.1)  # until it listens
            await trio.to_thread.run_sync(execute, options, replaced)
            await trio.to_thread.run_sync(execute, options, _END_LISTENING)
            with trio.fail_after(10):
                while log.epoch == was:  # noqa: ASYNC110 - beginning an epoch does not wake this task
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert (await other.bounds()).head.epoch == log.epoch
        assert head.epoch == was


async def test_events_of_an_ended_epoch_are_deleted_in_slices(options: DatabaseOptions) -> None:
    table = Names.of(options.url, options.schema).quoted("event_log")
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        await store.append(head, [event(number) for number in range(250)], "point")
        begun = await store.begin_epoch(head.at(250), "begun")
        head = begun.head.at((await store.append(begun.head, [event(251), event(252)], "further"))[-1].offset)
        rows = []
        for _ in range(4):
            assert await store.trim(age_s=3600, keep=2, limit=100, unused_s=3600) == 0
            rows += await trio.to_thread.run_sync(execute, options, f"select count(*) from {table}")
            assert len(await store.read(begun.head, 10)) == 2
        assert rows == [(152,), (52,), (2,), (2,)]


async def test_each_unused_position_is_forgotten_in_its_time(options: DatabaseOptions) -> None:
    table = Names.of(options.url, options.schema).quoted("acknowledged")
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        kept = []
        for name, unused_s in (("older", 1000), ("newer", 500)):
            await store.acknowledge([Acknowledgement(Claim("ann", name, "token"), head)])
            aged = f"update {table} set used_at_ms = used_at_ms - {unused_s * 1000} where name = '{name}'"
            await trio.to_thread.run_sync(execute, options, aged)
        for unused_s in (2000, 700, 600, 400):
            await store.trim(age_s=3600, keep=1, limit=100, unused_s=unused_s)
            kept.append([await store.acknowledged("ann", name) for name in ("older", "newer")])
        assert kept == [[head, head], [None, head], [None, head], [None, None]]


async def test_new_epoch_does_not_wait_for_old_events(postgres_database: str) -> None:
    """Appends and reads continue immediately, however many old events exist, and whatever blocks their deletion."""
    options = DatabaseOptions(url=postgres_database)
    await trio.to_thread.run_sync(migrate_log, options.url, options)
    table = Names.of(options.url, options.schema).quoted("event_log")
    engine = postgres_engine(options.url, connect_timeout_s=5)
    trimmed = trio.Event()

    async def trim(store: EventStore) -> None:
        assert await store.trim(age_s=3600, keep=0, limit=100, unused_s=3600) == 1
        trimmed.set()

    async with open_sql(options) as store, open_sql(options) as other:
        head = (await store.bounds()).head
        await store.append(head, [event(number) for number in range(50)], "point")
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                with engine.begin() as connection:
                    connection.execute(sa.text(f'select 1 from {table} where "offset" = 9 for update'))
                    begun = (await store.begin_epoch(head.at(50), "begun")).head
                    (stored,) = await other.append(begun, [event(51)], "further")
                    nursery.start_soon(trim, store)
                    await trio.sleep(0.1)  # so that it waits for the locked row
                    (another,) = await other.append(begun.at(stored.offset), [event(52)], "further")
                    assert await other.read(begun, 10) == [stored, another]
                    assert not trimmed.is_set()
                await trimmed.wait()
        assert await other.read(begun.at(stored.offset), 10) == [another]
    engine.dispose()


async def test_missing_tables_are_refused(options: DatabaseOptions) -> None:
    async with open_sql(DatabaseOptions(url=options.url, schema="not_there")) as store:
        with pytest.raises(DatabaseRefused):
            await store.bounds()


async def test_store_without_a_state_row_is_unavailable(options: DatabaseOptions) -> None:
    """The row may be missing while a dump is being restored."""
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        await trio.to_thread.run_sync(execute, options, "delete from {}")
        for attempt in (store.bounds(), store.append(head, [event(1)], "point"), store.read(head.at(0), 1)):
            with pytest.raises(StoreUnavailable, match="log_state has no row"):
                await attempt


async def test_quiet_conversation_is_found_by_its_index(options: DatabaseOptions) -> None:
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        new = [event(number) for number in range(5000)]
        quiet = [event(number, conversation_id="quiet") for number in range(2)]
        await store.append(head, [quiet[0], *new, quiet[1]], "point")
    names = Names.of(options.url, options.schema)
    events = names.quoted("event_log")
    values = values_of(OfConversation("quiet"))
    condition = log_tables(names).belongs_to(values)
    dialect = postgresql.dialect() if names.dialect == "postgresql" else sqlite.dialect()  # type: ignore[no-untyped-call]
    where = str(
        sa.select(1).where(condition).params(values).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    )
    where = where.partition("WHERE ")[2].replace("%%", "%")
    where = re.sub(r"[\w.]*event_log\.", "", where)
    found = f'select * from {events} where "offset" > 10 and {where} order by "offset" limit 500'
    if names.dialect == "postgresql":
        await trio.to_thread.run_sync(execute, options, f"analyze {events}")
        plan = await trio.to_thread.run_sync(execute, options, f"explain {found}")
    else:
        plan = await trio.to_thread.run_sync(execute, options, f"explain query plan {found}")
    assert "event_log_conversation_id" in str(plan)


async def test_conversation_id_longer_than_an_index_row_is_found(options: DatabaseOptions) -> None:
    letters = Random(1).choices(string.ascii_letters, k=16_000)
    long, longer = "".join(letters), "".join(letters) + "x"
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        await store.append(head, [event(1, conversation_id=long), event(2, conversation_id=longer)], "point")
        for offset, id_ in enumerate((long, longer), 1):
            assert [found.offset for found in await store.read(head, 10, OfConversation(id_))] == [offset]


async def test_events_have_no_index_beyond_the_conversation(options: DatabaseOptions) -> None:
    names = Names.of(options.url, options.schema)
    if names.dialect == "postgresql":
        listed = f"select indexdef from pg_indexes where schemaname = '{options.schema}' and tablename = 'event_log'"
    else:
        listed = f"select sql from sqlite_master where type = 'index' and tbl_name = '{names.bare('event_log')}'"
    found = [str(sql) for (sql,) in await trio.to_thread.run_sync(execute, options, listed)]
    assert [sql for sql in found if "channel_id" in sql or "type" in sql] == []
    assert any("conversation_id" in sql for sql in found)


async def test_following_does_not_wait_for_scans_of_clients(options: DatabaseOptions) -> None:
    async with open_sql(options) as store:
        start = (await store.bounds()).head
        events = [event(number, channel_id="busy") for number in range(1, 20_001)]
        head = start.at((await store.append(start, events, "point"))[-1].offset)
        scanned: list[int] = []

        async def scan(number: int) -> None:
            await store.read(start, 512, OfChannel("quiet"))
            scanned.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(scan, number)
            await trio.testing.wait_all_tasks_blocked()
            assert (await store.bounds()).head == head
            assert await store.read(head.at(head.offset - 100), 1000)
            assert len(scanned) < 30
            nursery.cancel_scope.cancel()
