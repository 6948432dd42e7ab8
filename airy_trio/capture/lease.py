"""Who may record: one holder at a time, on Postgres by an advisory lock, on SQLite by a lock on a file of ours.

Whether anybody records: asked from outside, without taking the lease for longer than the question.
"""

import fcntl
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog
import trio

from airy_trio.capture.change_log import TABLE
from airy_trio.database import (
    LOCK_CLASS,
    POSTGRES,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    DedicatedConnection,
    Names,
)

_HELD = sa.text(
    "select exists (select from pg_locks where locktype = 'advisory' and granted "
    "and cast(classid as int8) = :lock_class and objid = cast(to_regclass(:name) as oid) "
    "and database = (select oid from pg_database where datname = current_database()))"
)


def is_held(connection: sa.Connection, names: Names) -> bool:
    """Whether some server holds the lease of this database."""
    if names.dialect == POSTGRES:
        arguments = {"lock_class": LOCK_CLASS, "name": names.quoted(TABLE)}
        return bool(connection.execute(_HELD, arguments).scalar_one())
    file = connection.exec_driver_sql("PRAGMA database_list").one()[2]
    path = Path(file).resolve()
    return _is_locked(path.with_name(f"{path.name}.airy-trio.lock"))


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no server has ever been here, or its lock is nobody else's to look at
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


logger = structlog.get_logger(__name__)

SESSION_TIMEOUTS = {"idle_session_timeout": "1s", "idle_in_transaction_session_timeout": "1s"}
"""What every session of a recorder sets: a frozen holder loses the lease, and an open append, within a second."""

UNLOCK_TIMEOUT_S: Final = 1.0
LOG_CLASS: Final = LOCK_CLASS + 3
_TRY_LOG = sa.text("select pg_try_advisory_lock(:lock_class, :epoch)")
_UNLOCK_LOG = sa.text("select pg_advisory_unlock(:lock_class, :epoch)")
_TRY = sa.text("select pg_try_advisory_lock(:lock_class, cast(cast(to_regclass(:name) as oid) as int))")
_WATCH_CLIENT = sa.text(
    "do $$ begin perform set_config('client_connection_check_interval', '1s', false); "
    "exception when others then null; end $$"  # a server on some systems cannot do it
)
_UNLOCK_ALL = sa.text("select pg_advisory_unlock_all()")


class PostgresLease:
    """``Lease`` by a session's advisory lock on (our class, the change log's oid). It is polled, never waited for.

    A blocked waiter would hold back vacuum for as long as it waits.
    """

    def __init__(self, session: DedicatedConnection, names: Names) -> None:
        self._session = session
        self._name = names.quoted(TABLE)
        self._generation = 0

    async def try_acquire(self) -> bool:
        """See ``Lease.try_acquire``. Raises ``DatabaseUnavailable``."""
        if self._generation and self._generation == self._session.generation:
            return True
        arguments: dict[str, object] = {"lock_class": LOCK_CLASS, "name": self._name}
        if await self._session.run(lambda connection: _try(connection, _TRY, arguments)):
            self._generation = self._session.generation
            return True
        return False

    async def release(self) -> None:
        """See ``Lease.release``: the session is closed."""
        held, self._generation = self._generation, 0
        await _let_go(self._session, held)


class LogLease:
    """``Lease`` where nothing of ours stands in the database: an advisory lock on (a class of ours, the log's epoch).

    So servers with one event log agree on who records, and servers with another log have a lease of their own. When the
    log begins an epoch, the lease of the old one is given back and the new one tried. A read-only role, and a standby,
    may lock as well.
    """

    def __init__(self, session: DedicatedConnection, epoch: Callable[[], str]) -> None:
        self._session = session
        self._epoch = epoch
        self._held: tuple[int, str] | None = None

    async def try_acquire(self) -> bool:
        """See ``Lease.try_acquire``. Raises ``DatabaseUnavailable``."""
        epoch = self._epoch()
        if self._held == (self._session.generation, epoch):
            return True
        await self._unlock()
        if not await self._session.run(lambda connection: _try(connection, _TRY_LOG, _log_key(epoch))):
            return False
        self._held = self._session.generation, epoch
        return True

    async def release(self) -> None:
        """See ``Lease.release``: the session is closed."""
        held, self._held = self._held, None
        await _let_go(self._session, held[0] if held else 0)

    async def _unlock(self) -> None:
        held, self._held = self._held, None
        if held is not None and held[0] == self._session.generation:
            await self._session.run(lambda connection: connection.execute(_UNLOCK_LOG, _log_key(held[1])))


def _try(connection: sa.Connection, question: sa.TextClause, arguments: dict[str, object]) -> bool:
    """Try to take the lock. A session that has it ends soon after its process, even while it waits for a table."""
    taken: bool = connection.execute(question, arguments).scalar_one()
    if taken:
        connection.execute(_WATCH_CLIENT)
    return taken


async def _let_go(session: DedicatedConnection, held: int) -> None:
    """Close a session, of which generation ``held`` has a lock (0: none).

    It is unlocked first, since the server notices the end of a session in its own time; the next holder waits for
    neither. A session that does not answer now loses its locks by being closed.
    """
    try:
        if held and held == session.generation:
            with trio.move_on_after(UNLOCK_TIMEOUT_S):
                await session.run(lambda connection: connection.execute(_UNLOCK_ALL))
    except DatabaseError as error:
        logger.debug("the lease was not given back by its session, which is closed", reason=str(error))
    finally:
        await session.aclose()


class OwnLease:
    """``Lease`` where nobody else could record: the event log is this process's own memory."""

    async def try_acquire(self) -> bool:
        """See ``Lease.try_acquire``."""
        await trio.lowlevel.checkpoint()
        return True

    async def release(self) -> None:
        """See ``Lease.release``."""
        await trio.lowlevel.checkpoint()


class FileLease:
    """``Lease`` by an exclusive lock on a file, which the system lets go of when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    async def try_acquire(self) -> bool:
        """See ``Lease.try_acquire``. Raises ``DatabaseRefused`` where the file cannot be made."""
        return self._file is not None or await trio.to_thread.run_sync(self._try_lock)

    async def release(self) -> None:
        """See ``Lease.release``."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        await trio.lowlevel.checkpoint()

    def _try_lock(self) -> bool:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            message = f"the lock file {self._path} cannot be opened: {error.strerror}"
            raise DatabaseRefused(message) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            os.close(file)
            message = f"the lock file {self._path} cannot be locked: {error.strerror}"
            raise DatabaseUnavailable(message) from None
        self._file = file
        return True


def _log_key(epoch: str) -> dict[str, object]:
    """The two halves of the lock: integers of 32 bits, with sign."""
    number = zlib.crc32(epoch.encode())
    return {"lock_class": LOG_CLASS, "epoch": number - (1 << 32) if number >= 1 << 31 else number}
