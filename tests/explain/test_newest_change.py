"""The newest change of one object, and whether a resume point includes it, on both databases."""

import sqlalchemy as sa

from airy_trio.capture.change_log import SQLITE_FIRST, PostgresPoint, SqlitePoint
from airy_trio.capture.feed import Tag
from airy_trio.database import SQLITE
from airy_trio.explain import NewestChange, newest_change
from tests.application import Application
from tests.capture.feeds import feed_of


def point(application: Application) -> str:
    """Return the resume point after everything that is committed now."""
    with application.engine.begin() as connection:
        log = application.log_table("change_log")
        if application.dialect != SQLITE:
            return str(PostgresPoint.now(connection, log))
        rows = connection.execute(sa.text(f"select seq, token from {log} order by seq desc")).all()
    return str(SqlitePoint(*rows[0]) if rows else SQLITE_FIRST)


def newest(application: Application, id_: str, after: str | None) -> NewestChange | None:
    with application.engine.begin() as connection:
        return newest_change(connection, application.names, "tags", (id_, None), after)


def test_a_change_is_recorded_once_the_resume_point_includes_it(any_application: Application) -> None:
    any_application.migrate()
    before = point(any_application)
    any_application.tag("t1")
    assert newest(any_application, "t2", before) is None
    for unrecorded in (before, None, "[", "{}"):
        found = newest(any_application, "t1", unrecorded)
        assert found is not None
        assert (found.operation, found.recorded) == ("U", False)
    recorded = newest(any_application, "t1", point(any_application))
    assert recorded is not None
    assert recorded.recorded


async def test_only_changes_in_pages_already_read_are_recorded(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        start = await feed.origin()
        postgres_application.execute("insert into tags select 't' || n, 'flag', 'red' from generate_series(1, 9) n")
        batch = await feed.read(start, 4)
        assert batch.more
        recorded = {
            id_: change.recorded
            for id_ in (f"t{n}" for n in range(1, 10))
            if (change := newest(postgres_application, id_, batch.resume_point)) is not None
        }
        read = {tag.id for tag in batch.objects if isinstance(tag, Tag)}
    assert recorded == {f"t{n}": f"t{n}" in read for n in range(1, 10)}
    assert len(read) < 9


def test_the_newest_change_counts(any_application: Application) -> None:
    any_application.migrate()
    any_application.tag("t1")
    between = point(any_application)
    any_application.execute("delete from tags")
    found = newest(any_application, "t1", between)
    assert found is not None
    assert (found.operation, found.recorded) == ("D", False)


def test_newest_change_on_sqlite_after_its_clock_was_set_back(sqlite_application: Application) -> None:
    sqlite_application.migrate()
    sqlite_application.tag("t1")
    sqlite_application.execute(f"update {sqlite_application.log_table('change_log')} set at = at + 3600000")
    between = point(sqlite_application)
    sqlite_application.execute("delete from tags")
    found = newest(sqlite_application, "t1", between)
    assert found is not None
    assert (found.operation, found.recorded) == ("D", False)
