"""The event store in an SQLite file of its own: written durably, checked for replacement, watched for commits.

Identity. A file that is open may be removed, or another file put in its place. SQLite goes on with the file that it has
open, wherever its name points to: events appended then are in a file that cannot be found again, and a connection that
is opened later reads another history. So every unit of work ends with a comparison of device and inode, which takes
microseconds, and a difference ends the server (``StoreReplaced``).

Followers. SQLite sends no notifications. Instead a follower waits until the data version of the file changes. It asks
for the version over a separate connection, which costs a fraction of reading the bounds. ``database.sqlite`` explains
how often it asks.
"""
# ruff: noqa: D102 - the port documents each method

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import sqlalchemy as sa
import structlog

from airy_trio.database import Database, DatabaseError, DedicatedConnection, Names, close_all, sqlite_engine
from airy_trio.database.sqlite import LOOK_FIRST_S, FileVersions
from airy_trio.log.reads import READS_MAX
from airy_trio.log.sql.store import SqlStore, digest, state_values
from airy_trio.log.sql.tables import SqliteTables, Step, escaped
from airy_trio.log.store import (
    NewEvent,
    Position,
    StateChange,
    StoredEvent,
    StoreReplaced,
    StoreUnavailable,
    stored_after,
)

WRITER_LOOK_S: Final = 0.05
"""Between a write to the file and a look at it, by a process that made the last append itself: it mostly made this
write too."""
CACHE_KIB: Final = 8192
CHECKPOINT_PAGES: Final = 4000
"""A fold changes pages all over the indexes of the current state, often the same ones as the fold before it. The cache
has room for the indexes of about 100,000 objects, and 16 MB of WAL are written before pages are copied into the file.
With the defaults (2 MB and 1000 pages) adding 500 events takes twice as long."""

logger = structlog.get_logger(__name__)

T = TypeVar("T")
Work = Callable[[sa.Connection], T]


class SqliteStore(SqlStore):
    """``EventStore`` in an SQLite file. ``appending``: for everything that writes."""

    def __init__(self, names: Names, reading: Database, appending: Database) -> None:
        replaying = Database(reading.engine, threads_max=READS_MAX)
        self._statements = SqliteTables(names)
        runs = (partial(self._run, run) for run in (reading.run, replaying.run, appending.write))
        super().__init__(self._statements, *runs)
        self._pools = reading, replaying, appending
        self._write = appending.write
        self._path = Path(reading.engine.url.database or "")
        self._identity: tuple[int, int] | None = None
        self._watching = DedicatedConnection(sqlite_engine(self._path))  # only for the version of the file
        self._versions = FileVersions(self._watching, self._watching.aclose)
        self._appended: Position | None = None
        sa.event.listen(appending.engine, "connect", prepare_writes)

    async def wait(self, after: Position) -> None:
        if (await self.bounds()).head != after:
            return
        after_s = WRITER_LOOK_S if after == self._appended else LOOK_FIRST_S
        try:
            await self._versions.wait(after_s=after_s)
        except DatabaseError:  # the caller's next read of the log raises what is wrong
            await self._versions.pause()

    async def aclose(self) -> None:
        """Close files and connections. Idempotent."""
        await close_all(self._watching.aclose, *(pool.aclose for pool in self._pools))

    async def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        state: StateChange | None = None,
    ) -> Sequence[StoredEvent]:
        reached = expected.at(expected.offset + len(events))
        head = _expected(expected, resume_point) | {"new_last": reached.offset, "replaces": replaces}
        head |= state_values(expected.offset, reached, resume_point, state)

        def work(connection: sa.Connection) -> list[StoredEvent] | None:
            # The transaction writes from its start (``Database.write``), so no other process appends between the
            # comparison in this statement and the commit.
            appended_at_ms = connection.execute(self._statements.advance, head).scalar()
            if appended_at_ms is None:
                return None
            new = stored_after(expected, events, appended_at_ms)
            driver: Any = connection.connection.driver_connection  # SQLAlchemy would take three times as long
            driver.executemany(self._statements.insert, map(_row_of, new))
            if state is not None:
                ended = ((digest(escaped(object_)), reached.offset) for object_ in state.ended)
                driver.executemany(self._statements.end, ended)
                swept = ({"type": type_, "upto": upto} for type_, upto in state.swept.items())
                driver.executemany(self._statements.sweep, swept)
            return new

        new = await self._unless_stale(expected, self._write(self._checked(work)))
        self._appended = reached
        return new

    async def _begin_epoch(self, expected: Position, epoch: str, resume_point: str | None) -> int | None:
        step = Step(self._statements.begin_epoch, _expected(expected, resume_point) | {"new_epoch": epoch})
        [begun] = await self._writing(step)
        return begun[0][0] if begun else None

    async def _run(self, run: Callable[[Work[list[Any]]], Awaitable[list[Any]]], *steps: Step) -> list[Any]:
        def work(connection: sa.Connection) -> list[Any]:
            results = []
            for step in steps:
                with closing(connection.execute(step.statement, step.values)) as rows:
                    results.append(step.convert(rows) if rows.returns_rows else [])
            return results

        return await self._translated(run(self._checked(work)))

    def _checked(self, work: Work[T]) -> Work[T]:
        # Within the transaction, which is rolled back if the file has changed: an append to a file that no longer has a
        # name must not count as done.
        def unit(connection: sa.Connection) -> T:
            try:
                return work(connection)
            finally:
                self._check()  # replaces any result or error of the unit

        return unit

    def _check(self) -> None:
        """Raise ``StoreReplaced`` if the file is gone, or is another one than at the first check.

        Raises ``StoreUnavailable`` if the file cannot be reached now: a right to the folder is missing or a disk fails.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._lost("was removed")
        except OSError as error:
            raise StoreUnavailable(f"the event log {self._path} cannot be reached: {error.strerror}") from None
        identity = status.st_dev, status.st_ino
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            self._lost("was replaced by another file")

    def _lost(self, what: str) -> NoReturn:
        message = (
            f"log.url: the event log {self._path} {what} while it was open; "
            "the next start begins a new epoch, and clients reload"
        )
        raise StoreReplaced(message)


def _row_of(event: StoredEvent) -> Sequence[Any]:
    """Return the row of an event, in the order of the columns, which is the order of its own fields."""
    # Printable text needs no escaping, and nearly all text is printable, so one test covers three fields.
    if f"{event.object}{event.conversation_id}{event.channel_id}".isprintable():
        return event
    texts = escaped(event.object), escaped(event.conversation_id), escaped(event.channel_id)
    return event.offset, event.appended_at_ms, event.type, *texts, event.body, event.truncated, event.age_ms


def _expected(head: Position, resume_point: str | None) -> dict[str, Any]:
    return {"expected_epoch": head.epoch, "expected_last": head.offset, "point": resume_point}


def prepare_writes(connection: sqlite3.Connection, _record: object) -> None:
    """Set the cache, the checkpoints and WAL mode of a new connection that writes, and give it ``airy_digest``.

    In WAL mode readers never block the writer.
    """
    # SQLite itself has no function for SHA-256.
    connection.create_function("airy_digest", 1, digest, deterministic=True)
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    try:
        connection.execute("PRAGMA journal_mode = wal")  # stays with the file
    except sqlite3.OperationalError as error:  # there is a reader just now; the mode so far is correct, only slower
        logger.warning("the event log's file is not in WAL mode yet", reason=str(error))
