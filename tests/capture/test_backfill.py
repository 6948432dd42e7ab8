"""The pages of a backfill: every key once, for every type and collation of the key columns."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from attrs import evolve

from airy_trio.backfill import BackfillTaken, Progress, TableBackfill, waiting
from airy_trio.capture.feed import Backfill, Kind, Tag, TagGone
from airy_trio.capture.inspection import inspect
from airy_trio.capture.mapping import KINDS
from airy_trio.capture.objects import Change, Objects
from airy_trio.capture.queries import TEXT_CHARS_MAX
from airy_trio.database import SQLITE
from airy_trio.events.translate import EventsOptions, translate
from airy_trio.explain import newest_change
from airy_trio.settings import Settings
from tests.application import Application, only
from tests.capture.feeds import NO_LOG, feed_of, read_all

ANY_ID = only(tags="")
SUBJECT = only(metadata="")


def table_backfill(application: Application, settings: Settings, kind: Kind = "tags") -> TableBackfill:
    with application.engine.begin() as connection:
        return TableBackfill(application.names, inspect(connection, settings.tables)[kind])


def begin(application: Application, backfill: TableBackfill, *, restart: bool = False) -> Progress:
    with application.engine.begin() as connection:
        progress = backfill.begin(connection, restart=restart)
    with application.engine.begin() as connection:
        return progress if progress.bounded else backfill.bound(connection, progress)


def page(application: Application, backfill: TableBackfill, progress: Progress, limit: int) -> Progress:
    with application.engine.begin() as connection:
        return backfill.write_page(connection, progress, limit)


def end(application: Application, backfill: TableBackfill, progress: Progress) -> None:
    with application.engine.begin() as connection:
        backfill.end(connection, progress)


def whole(application: Application, backfill: TableBackfill, limit: int) -> None:
    progress = begin(application, backfill)
    for _ in range(1000):
        if progress.is_done:
            break
        progress = page(application, backfill, progress, limit)
    end(application, backfill, progress)


def logged(application: Application) -> list[tuple[Any, ...]]:
    """Return operation and keys of the change log, in order."""
    log = application.log_table("change_log")
    with application.engine.begin() as connection:
        rows = connection.execute(
            sa.text(f"select operation, key_1, key_2 from {log} order by {application.log_order}")
        )
        return [tuple(row) for row in rows]


def keys(application: Application) -> list[Any]:
    """Check the marks, and return the keys between them; if there is one key column, only its values."""
    rows = logged(application)
    assert [rows[0][0], rows[-1][0]] == ["B", "E"]
    assert rows[0][1] == rows[-1][1]
    written = rows[1:-1]
    assert {operation for operation, _, _ in written} <= {"U"}
    return [one if other is None else (one, other) for _, one, other in written]


def install(application: Application, create: str, *values: str, settings: str = ANY_ID) -> Settings:
    """Create a table with rows that are older than our triggers."""
    application.execute(create, *values)
    return application.migrate(settings + NO_LOG, with_tables=False)


TEXTS = [
    "a",
    "B",
    "b",
    "Z",
    "z",
    "ä",
    "é",
    "e",
    "10",
    "9",
    "",
    " ",
    "a b",
    "a-b",
    "ab",
    "A",
    "ß",
    "ss",
    "日本",
    "\u0301",
]


def insert_all(column: str, values: Sequence[str]) -> list[str]:
    return [f"insert into tags ({column}, name, color) values ('{value}', 'n', 'red')" for value in values]


POSTGRES_TYPES = {
    "text": ("text", TEXTS),
    "C": ('text collate "C"', TEXTS),
    "icu": ('text collate "en-x-icu"', TEXTS),
    "ignores-case": ("text collate ignores_case", TEXTS),
    "varchar": ("varchar(20)", TEXTS),
    "char": ("char(8)", ["a", "b", "ab"]),
    "integer": ("integer", ["-2147483648", "-1", "0", "9", "10", "2147483647"]),
    "bigint": ("bigint", ["-9223372036854775808", "9", "10", "9223372036854775807"]),
    "numeric": ("numeric", ["-1.50", "1.10", "1.1", "9", "10", "123456789012345678901234567890"]),
    "uuid": ("uuid", [f"{n}0000000-0000-4000-8000-00000000000{n}" for n in (9, 1, 5)]),
    "date": ("date", ["2024-01-02", "2023-12-31", "2024-11-01"]),
    "timestamp": ("timestamptz", ["2024-01-02T00:00:00.000001Z", "2023-12-31T12:00:00Z"]),
    "enum": ("mood", ["sad", "happy", "ok"]),
    "domain": ("email", ["b@x", "A@x", "a@x"]),
}


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("name", list(POSTGRES_TYPES))
def test_every_type_of_key_on_postgres(postgres_application: Application, name: str, limit: int) -> None:
    declared, values = POSTGRES_TYPES[name]
    postgres_application.execute(
        "create collation ignores_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "create type mood as enum ('sad', 'ok', 'happy')",
        "create domain email as text check (value like '%@%')",
    )
    create = f"create table tags (id {declared}, name text, color text)"
    settings = install(postgres_application, create, *insert_all("id", values), *insert_all("id", values[:2]))
    postgres_application.execute("insert into tags (id, name, color) values (null, 'n', 'red')")
    with postgres_application.engine.begin() as connection:
        there = connection.exec_driver_sql("select distinct id::text from tags where id is not null")
        whole_keys = set(there.scalars())
    log = postgres_application.log_table("change_log")
    postgres_application.execute(f"delete from {log}")
    whole(postgres_application, table_backfill(postgres_application, settings), limit)
    assert set(keys(postgres_application)) == whole_keys


SQLITE_VALUES: list[object] = [
    *TEXTS, "a\0b", "a\0a", "a", 9, 10, -5, 2**63 - 1, 1.5, float("inf"), b"", b"a", b"\xff\0", "9", "10",
]  # fmt: skip


@pytest.mark.parametrize(
    "declared, limit",
    [
        *((declared, 1) for declared in ["", "text collate nocase", "text collate rtrim", "integer", "real", "blob"]),
        *((declared, 7) for declared in ["", "text", "text collate nocase", "numeric"]),
        *(pytest.param(declared, 1, marks=pytest.mark.slow) for declared in ["text", "numeric"]),
        *(
            pytest.param(declared, 7, marks=pytest.mark.slow)
            for declared in ["text collate rtrim", "integer", "real", "blob"]
        ),
    ],
)
def test_every_type_of_key_on_sqlite(sqlite_application: Application, declared: str, limit: int) -> None:
    settings = install(sqlite_application, f"create table tags (id {declared}, name text, color text)")
    log = sqlite_application.log_table("change_log")
    with sqlite_application.engine.begin() as connection:
        for value in [*SQLITE_VALUES, None]:
            connection.exec_driver_sql("insert into tags values (?, 'n', 'red')", (value,))
        connection.exec_driver_sql("insert into tags values (cast(x'61ff' as text), 'n', 'red')")
        connection.exec_driver_sql("insert into tags values (cast(x'62ff' as text), 'n', 'red')")
        connection.exec_driver_sql(f"delete from {log}")
    whole(sqlite_application, table_backfill(sqlite_application, settings), limit)
    quoted = "typeof({0}) || ':' || case when typeof({0}) in ('text', 'blob') then hex({0}) else quote({0}) end"
    with sqlite_application.engine.begin() as connection:
        written = connection.exec_driver_sql(f"select {quoted.format('key_1')} from {log} where operation = 'U'")
        there = connection.exec_driver_sql(f"select distinct {quoted.format('id')} from tags where id is not null")
        assert sorted(written.scalars()) == sorted(there.scalars())


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_metadata_pairs_come_once(any_application: Application, limit: int) -> None:
    any_application.settings(SUBJECT)
    settings = any_application.migrate(SUBJECT)
    pairs = [("conversation", "1"), ("conversation", "10"), ("channel", "2"), ("message", "A"), ("message", "a")]
    for (subject, identifier), key in itertools.product(pairs, "xyz"):
        any_application.metadata(subject, identifier, key, "v")
    any_application.execute(f"delete from {any_application.log_table('change_log')}")
    whole(any_application, table_backfill(any_application, settings, "metadata"), limit)
    assert set(keys(any_application)) == set(pairs)
    if limit in (3, 100):
        assert len(keys(any_application)) == len(pairs)


def test_empty_table_has_only_marks(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    whole(any_application, table_backfill(any_application, settings), 10)
    assert keys(any_application) == []


@pytest.mark.parametrize("limit", [1, 2])
def test_rows_beyond_the_last_key_are_left_to_their_triggers(any_application: Application, limit: int) -> None:
    settings = any_application.migrate(ANY_ID)
    for number in range(4):
        any_application.tag(f"t{number}")
    any_application.execute(f"delete from {any_application.log_table('change_log')}")
    backfill = table_backfill(any_application, settings)
    progress = begin(any_application, backfill)
    any_application.tag("t1x")
    for number in range(8):  # the table grows by two rows for each that is written
        any_application.tag(f"u{number}")
        any_application.tag(f"v{number}")
        if not progress.is_done:
            progress = page(any_application, backfill, progress, limit)
    assert progress.is_done
    end(any_application, backfill, progress)
    assert progress.rows == 5


def test_rows_deleted_meanwhile(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    for number in range(6):
        any_application.tag(f"t{number}")
    any_application.execute(f"delete from {any_application.log_table('change_log')}")
    backfill = table_backfill(any_application, settings)
    progress = page(any_application, backfill, begin(any_application, backfill), 2)
    any_application.execute(
        "delete from tags where id in ('t1', 't2', 't5')"
    )  # the last row of the page, the next one, the last of all
    while not progress.is_done:
        progress = page(any_application, backfill, progress, 2)
    end(any_application, backfill, progress)
    written = [key for operation, key, _ in logged(any_application) if operation == "U"]
    assert sorted(written) == ["t0", "t1", "t3", "t4"]


def test_begun_backfill_continues_with_its_token(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    for number in range(5):
        any_application.tag(f"t{number}")
    backfill = table_backfill(any_application, settings)
    progress = page(any_application, backfill, begin(any_application, backfill), 2)
    again = begin(any_application, table_backfill(any_application, settings))
    assert (again, again.rows) == (progress, 2)
    restarted = begin(any_application, backfill, restart=True)
    assert (restarted.token != progress.token, restarted.after) == (True, None)
    with pytest.raises(BackfillTaken, match="tags"):
        page(any_application, backfill, progress, 2)
    with pytest.raises(BackfillTaken):
        end(any_application, backfill, progress)
    before = logged(any_application)
    with pytest.raises(BackfillTaken):
        page(any_application, backfill, progress, 2)
    assert logged(any_application) == before  # the page has left nothing
    end(any_application, backfill, restarted)
    assert any_application.scalar(f"select backfill from {any_application.log_table('change_state')}") is None
    assert begin(any_application, backfill).token not in (progress.token, restarted.token)


def test_backfill_that_was_restarted_is_not_bounded(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    backfill = table_backfill(any_application, settings)
    with any_application.engine.begin() as connection:
        first = backfill.begin(connection)
    restarted = begin(any_application, backfill, restart=True)
    with pytest.raises(BackfillTaken), any_application.engine.begin() as connection:
        backfill.bound(connection, first)
    assert begin(any_application, backfill) == restarted


async def test_two_commands_do_not_write_the_same_page(postgres_application: Application) -> None:
    settings = postgres_application.migrate(ANY_ID)
    for number in range(3):
        postgres_application.tag(f"t{number}")
    backfill = table_backfill(postgres_application, settings)
    progress = begin(postgres_application, backfill)
    with postgres_application.engine.connect() as first:
        backfill.write_page(first, progress, 2)

        async def second() -> None:
            with pytest.raises(BackfillTaken):
                await trio.to_thread.run_sync(page, postgres_application, backfill, progress, 2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            while not postgres_application.scalar("select count(*) from pg_locks where not granted"):  # noqa: ASYNC110 - the database notifies nobody
                await trio.sleep(0.02)
            first.commit()


def test_another_mapping_begins_again(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    any_application.tag("t1")
    progress = begin(any_application, table_backfill(any_application, settings))
    by_name = any_application.migrate(only(tags='columns = {id = "name"}'))
    assert begin(any_application, table_backfill(any_application, by_name)).token != progress.token


def test_backfills_of_two_tables_do_not_disturb_each_other(any_application: Application) -> None:
    settings = any_application.migrate()
    any_application.tag("t1")
    any_application.channel("ch1")
    tags, channels = (table_backfill(any_application, settings, kind) for kind in ("tags", "channels"))
    one, other = begin(any_application, tags), begin(any_application, channels)
    one, other = page(any_application, tags, one, 1), page(any_application, channels, other, 1)
    end(any_application, tags, one)
    assert begin(any_application, channels) == other
    end(any_application, channels, other)


def test_number_of_waiting_rows(any_application: Application) -> None:
    any_application.migrate(ANY_ID)
    with any_application.engine.begin() as connection:
        assert waiting(connection, any_application.names, 10) == (0, None)
    for number in range(3):
        any_application.tag(f"t{number}")
    with any_application.engine.begin() as connection:
        rows, first = waiting(connection, any_application.names, 10)
        assert (rows, first is not None) == (3, True)
        assert waiting(connection, any_application.names, 2) == (2, first)


def test_about_how_many_rows(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    backfill = table_backfill(any_application, settings)
    with any_application.engine.begin() as connection:
        assert backfill.rows_about(connection) is None
    for number in range(30):
        any_application.tag(f"t{number}")
    any_application.execute("analyze tags")
    with any_application.engine.begin() as connection:
        assert backfill.rows_about(connection) == (None if any_application.dialect == SQLITE else 30)


async def test_feed_returns_marks_in_order(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    async with feed_of(any_application, settings) as feed:
        point = await feed.origin()
        any_application.tag("t1")
        backfill = table_backfill(any_application, settings)
        progress = begin(any_application, backfill)
        end(any_application, backfill, page(any_application, backfill, progress, 10))
        objects, _, [batch] = await read_all(feed, point)
    assert objects == [Tag(id="t1", name="flag", color="tag-red")]
    token = progress.token
    assert batch.backfills == tuple(Backfill(kind="tags", token=token, ended=ended) for ended in (False, True))
    assert batch.changes == 4


async def test_marks_alone_are_changes(any_application: Application) -> None:
    settings = any_application.migrate(SUBJECT)  # a mark that is taken for a change would give an empty pair
    async with feed_of(any_application, settings) as feed:
        point = await feed.origin()
        whole(any_application, table_backfill(any_application, settings, "metadata"), 10)
        batches = []
        for _ in range(2):
            batches.append(await feed.read(point, 1))
            point = batches[-1].resume_point
    assert [(batch.changes, batch.objects, len(batch.backfills)) for batch in batches] == [(1, (), 1)] * 2
    assert [batch.backfills[0].ended for batch in batches] == [False, True]


def test_taken_backfill_of_a_removed_state(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    any_application.tag("t1")
    backfill = table_backfill(any_application, settings)
    progress = begin(any_application, backfill)
    with pytest.raises(BackfillTaken):
        page(any_application, backfill, evolve(progress, rows=1), 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["text", "integer", "uuid"])
def test_server_without_support_for_marks_survives_them(any_application: Application, kind: Kind, key: str) -> None:
    """It takes a mark for the change of a row with that key: no event, and at most one row fault."""
    columns = {
        "messages": "conversation_id text, channel_id text, content text, delivery_state text, from_contact boolean, "
        "sent_at timestamp, source text, sender_id text",
        "metadata": f"subject text, identifier {key}, key text, value text",
        "channels": "source text, source_channel_id text, connected boolean",
        "tags": "name text, color text",
    }[kind]
    id_ = "" if kind == "metadata" else f"id {key}, "
    settings = install(any_application, f"create table {kind} ({id_}{columns})", settings=only(**{kind: ""}))
    whole(any_application, table_backfill(any_application, settings, kind), 10)
    log = any_application.log_table("change_log")
    with any_application.engine.begin() as connection:
        objects = Objects(any_application.dialect, inspect(connection, settings.tables), TEXT_CHARS_MAX)
        rows = connection.exec_driver_sql(f"select kind, operation, key_1, key_2 from {log}").all()
        found = objects.read(connection, [Change(row[0], row[1], (row[2], row[3]), (None, None)) for row in rows])
    meaning = translate(found, EventsOptions(deletes=True))
    assert (list(meaning.events), len(meaning.faults) <= 1) == ([], True)


def test_newest_change_is_never_a_mark(any_application: Application) -> None:
    settings = any_application.migrate(ANY_ID)
    backfill = table_backfill(any_application, settings)
    progress = begin(any_application, backfill)
    with any_application.engine.begin() as connection:
        assert newest_change(connection, any_application.names, "tags", (progress.token, None), None) is None


async def test_deletion_that_a_page_does_not_see_is_not_lost(postgres_application: Application) -> None:
    """The deletion is logged before the page writes the key of the row, and becomes visible after it."""
    settings = postgres_application.migrate("")
    postgres_application.execute("insert into tags (id, name, color) values ('t1', 'n', 'red')")
    async with feed_of(postgres_application, settings) as feed:
        _, point, _ = await read_all(feed, await feed.origin())
        with postgres_application.engine.connect() as deleting:
            deleting.exec_driver_sql("delete from tags where id = 't1'")
            whole(postgres_application, table_backfill(postgres_application, settings), limit=10)
            deleting.commit()
        found, _, _ = await read_all(feed, point)
    assert found == [TagGone(id="t1")]


async def test_row_recorded_before_the_begin_is_within_the_backfill(postgres_application: Application) -> None:
    """Another transaction inserts it, and the recorder reads it, while the one that begins the backfill is open."""
    settings = postgres_application.migrate("")
    postgres_application.execute("insert into tags (id, name, color) values ('t1', 'n', 'red')")
    backfill = table_backfill(postgres_application, settings)
    async with feed_of(postgres_application, settings) as feed:
        with postgres_application.engine.connect() as beginning:
            backfill.begin(beginning)
            postgres_application.execute("insert into tags (id, name, color) values ('t2', 'n', 'red')")
            found, point, _ = await read_all(feed, await feed.origin())
            assert [one.id for one in found if isinstance(one, Tag)] == ["t1", "t2"]
            beginning.commit()
        progress = begin(postgres_application, backfill)
        assert progress.until == (("text", b"t2".hex()),)
        page(postgres_application, backfill, progress, 10)
        found, _, [batch] = await read_all(feed, point)
        assert {one.id for one in found if isinstance(one, Tag)} == {"t1", "t2"}
        assert len(batch.backfills) == 1


async def test_batches_report_changes_that_became_visible_together(postgres_application: Application) -> None:
    """A row is logged before the mark of a backfill, whose snapshots do not see it, and read before that mark."""
    settings = postgres_application.migrate("")
    async with feed_of(postgres_application, settings) as feed:
        with postgres_application.engine.connect() as inserting:
            inserting.exec_driver_sql("insert into tags (id, name, color) values ('t1', 'n', 'red')")
            whole(postgres_application, table_backfill(postgres_application, settings), limit=10)
            inserting.commit()
        _, point, batches = await read_all(feed, await feed.origin(), limit=1)
        assert [(len(one.objects), len(one.backfills), one.continues) for one in batches[:3]] == [
            (1, 0, False),
            (0, 1, True),
            (0, 1, True),
        ]
        postgres_application.execute("insert into tags (id, name, color) values ('t2', 'n', 'red')")
        assert not (await feed.read(point, 10)).continues
