"""Where we may write and where events are kept: options of several sections that do not go together."""

from collections.abc import Iterator

import sqlalchemy as sa

from airy_trio.changes.feed import ChangesOptions
from airy_trio.changes.tables import TablesOptions
from airy_trio.database import POSTGRES, SQLITE, DatabaseOptions, sqlite_path
from airy_trio.events.translate import EventsOptions
from airy_trio.log.options import LogOptions


def contradictions(
    database: DatabaseOptions, tables: TablesOptions, changes: ChangesOptions, events: EventsOptions, log: LogOptions
) -> Iterator[str]:
    """Options that do not go together, each as a line that names them all, free of secrets."""
    yield from _own_file(database, log)
    if changes.reads_only:
        if log.store == "sql" and _is_same_postgres(database, log):
            yield (
                'log.url: changes.capture = "updated_at" writes nothing into the database of database.url, so the '
                "events need another place: an SQLite file or another database here, or another log.store"
            )
        if events.deletes and not (tables.messages.where or tables.tags.where):
            yield (
                'events.deletes: changes.capture = "updated_at" cannot see that a row was deleted; allowed only where '
                "database.tables.messages.where or database.tables.tags.where leaves out what is marked as deleted"
            )


def _own_file(database: DatabaseOptions, log: LogOptions) -> Iterator[str]:
    """The application must never meet a lock because of us, so its file is not for our events."""
    if log.store != "sql" or not log.url.startswith(SQLITE) or not database.url.startswith(SQLITE):
        return
    if sqlite_path(log.url).resolve() == sqlite_path(database.url).resolve():
        yield 'log.url: this is the application\'s own file (database.url); name another one, or "" for one beside it'


def _is_same_postgres(database: DatabaseOptions, log: LogOptions) -> bool:
    if not database.url.startswith(POSTGRES):
        return False
    location = _without_driver(log.location(database.url))
    return location in (_without_driver(url) for url in (database.url, database.direct_url) if url)


def _without_driver(url: str) -> sa.URL:
    """A URL to compare: the driver may be left out."""
    return sa.make_url(url).set(drivername=sa.make_url(url).get_backend_name())
