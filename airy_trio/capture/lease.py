"""The lease: which process may record. At most one process holds it.

- ``PostgresLease``: an advisory lock on the change log, for all servers of one database.
- ``LogLease``: an advisory lock on the epoch of the event log, if the database has no change log of ours.
- ``FileLease``: a lock on a file next to an SQLite database.
- ``OwnLease``: always held, if the event log is in the memory of this process.

Advisory locks are polled, never waited for: a blocked waiter would hold back vacuum for as long as it waits.

The system or the server releases the lock of a process that dies. A process that is frozen or cut off from the network
is the harder case, because its session stays open and a stopped leader would keep the lock. Therefore every session of
a recorder sets ``SESSION_TIMEOUTS``, with which Postgres ends a session that is idle for a second. A working recorder
uses its session more often than that.
"""
# ruff: noqa: D102 - the port documents each method

import errno
import fcntl
import os
import zlib
from collections.abc import Callable
from ctypes import c_int32
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog
import trio

from airy_trio.capture.change_log import TABLE
from airy_trio.database import (
    LEASE_CLASS,
    LOG_CLASS,
    POSTGRES,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    DedicatedConnection,
    Names,
    create_private_file,
)

logger = structlog.get_logger(__name__)

SESSION_TIMEOUTS = {"idle_session_timeout": "1s", "idle_in_transaction_session_timeout": "1s"}
"""Settings of every session of a recorder: a frozen holder loses the lease, and an open append, within a second."""

UNLOCK_TIMEOUT_S: Final = 1.0

_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT})
"""Errors of ``open`` that end when the machine has descriptors, memory or disk space again."""

_WATCH_CLIENT = sa.text(
    "do $$ begin perform set_config('client_connection_check_interval', '1s', false); "
    "exception when others then null; end $$"  # Servers on some systems do not support it.
)
_UNLOCK_ALL = sa.text("select pg_advisory_unlock_all()")
_HELD = sa.text(
    "select exists (select from pg_locks where locktype = 'advisory' and granted "
    "and cast(classid as int8) = :lock_class and objid = cast(to_regclass(:name) as oid) "
    "and database = (select oid from pg_database where datname = current_database()))"
)


class _AdvisoryLease:
    """``Lease`` by a session's advisory lock on (``lock_class``, ``number``).

    ``number`` is an SQL expression over ``:key``, and ``key`` returns the current key. When the key changes, the lock
    on the old one is released and the new one tried.
    """

    def __init__(
        self, session: DedicatedConnection, lock_class: int, number: str, key: Callable[[], str | int]
    ) -> None:
        self._session = session
        self._key = key
        self._try = sa.text(f"select pg_try_advisory_lock({lock_class}, {number})")
        self._unlock = sa.text(f"select pg_advisory_unlock({lock_class}, {number})")
        self._held: tuple[int, str | int] | None = None  # the session's generation, and the key

    async def try_acquire(self) -> bool:
        """See ``Lease.try_acquire``. Raises ``DatabaseUnavailable``."""
        # No query while session and key are the same. The lock ends with its session. The feed reads in the same
        # session, so if the lock was lost without notice, the next read fails. A process that is frozen after a read
        # may continue after another one has acquired the lease. The store then rejects its append, because the append
        # names the head and the resume point that it expects.
        key = self._key()
        if self._held == (self._session.generation, key):
            return True
        # Reset before the first checkpoint, because after an error or a cancellation it is not known what the session
        # holds. The next attempt takes the lock again; Postgres grants a session a lock that it already holds.
        held, self._held = self._held, None
        if held is not None and held[0] == self._session.generation:
            await self._session.run(lambda connection: connection.execute(self._unlock, {"key": held[1]}))
        if not await self._session.run(lambda connection: self._lock(connection, key)):
            return False
        self._held = self._session.generation, key
        return True

    async def release(self) -> None:
        """See ``Lease.release``. Closes the session.

        The lock is released first, because the server may take its time to notice that the session has ended and the
        next holder should not wait for that. A session that does not answer loses its locks when it is closed.
        """
        held, self._held = self._held, None
        try:
            if held is not None and held[0] == self._session.generation:
                with trio.move_on_after(UNLOCK_TIMEOUT_S):
                    # All locks, because the same session may hold that of the wake-up (``postgres.Wakeup``). Until that
                    # one is free, the next holder of the lease has to poll.
                    await self._session.run(lambda connection: connection.execute(_UNLOCK_ALL))
        except DatabaseError as error:
            logger.debug("lease not released by its session; closing the session", reason=str(error))
        finally:
            await self._session.aclose()

    def _lock(self, connection: sa.Connection, key: str | int) -> bool:
        locked: bool = connection.execute(self._try, {"key": key}).scalar_one()
        if locked:
            # The server checks every second whether this process is still connected, even while a statement of the
            # session waits for a table lock. Otherwise a dead holder would keep the lease until that wait ends.
            connection.execute(_WATCH_CLIENT)
        return locked


class PostgresLease(_AdvisoryLease):
    """``Lease`` by an advisory lock on (our class, the oid of the change log). Not acquired without a change log."""

    def __init__(self, session: DedicatedConnection, names: Names) -> None:
        name = names.quoted(TABLE)
        super().__init__(session, LEASE_CLASS, "cast(cast(to_regclass(:key) as oid) as int)", lambda: name)


class LogLease(_AdvisoryLease):
    """``Lease`` by an advisory lock on (another class, the epoch of the event log), without tables of ours.

    Servers with the same event log compete for one lease, and servers with another log have a lease of their own.
    A read-only role may take such a lock, also on a standby.
    """

    def __init__(self, session: DedicatedConnection, epoch: Callable[[], str]) -> None:
        # Each half of the lock's key is a signed number of 32 bits.
        super().__init__(session, LOG_CLASS, "cast(:key as int)", lambda: c_int32(zlib.crc32(epoch().encode())).value)


class FileLease:
    """``Lease`` by an exclusive lock on the database's ``lock_file``. The system releases it when the process dies."""

    # ``flock``, not a POSIX lock: a process loses its POSIX locks on a file when it closes any descriptor of the file,
    # and two leases in one process would not exclude each other. For the same reason the lock is not on the database
    # file, on which SQLite holds POSIX locks: to open and close that file here would release them.
    def __init__(self, database: Path, schema: str = "airy_trio") -> None:
        self._database = database.resolve()
        self._path = lock_file(database, schema)
        self._file: int | None = None

    async def try_acquire(self) -> bool:
        """See ``Lease.try_acquire``. Raises ``DatabaseRefused`` if the file cannot be created.

        Raises ``DatabaseUnavailable`` if the machine has no descriptor, memory or disk space left for it.
        """
        # Not abandoned if cancelled: an abandoned thread could acquire the lock after ``release``, and would hold it as
        # long as the process lives.
        return self._file is not None or await trio.to_thread.run_sync(self._try_lock)

    async def release(self) -> None:
        # The file stays. If it were removed, a process that has just opened it would lock a file that no other process
        # finds.
        if self._file is not None:
            os.close(self._file)
            self._file = None
        await trio.lowlevel.checkpoint()

    def _try_lock(self) -> bool:
        try:
            try:
                file = create_private_file(self._path, self._database)
            except FileExistsError:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            kind = DatabaseUnavailable if error.errno in _SHORTAGES else DatabaseRefused
            raise kind(f"the lock file {self._path} cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            os.close(file)
            raise DatabaseUnavailable(f"the lock file {self._path} cannot be locked: {error.strerror}") from None
        self._file = file
        return True


class OwnLease:
    """``Lease`` that this process always holds, because the event log is in its memory."""

    async def try_acquire(self) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def release(self) -> None:
        await trio.lowlevel.checkpoint()


def lock_file(database: Path, schema: str = "airy_trio") -> Path:
    """Return the lock file of a change log or an event log: of its SQLite database and ``[database] schema``.

    Symbolic links are resolved, so that all paths lead to one lock.
    """
    path = database.resolve()
    return path.with_name(f"{path.name}.{schema.replace('_', '-')}.lock")


def is_held(connection: sa.Connection, names: Names) -> bool:
    """Return whether any server holds the lease of a change log, without acquiring it.

    On SQLite a shared lock is taken for an instant; during that instant a server fails to acquire and tries again.
    """
    if names.dialect == POSTGRES:
        arguments = {"lock_class": LEASE_CLASS, "name": names.quoted(TABLE)}
        return bool(connection.execute(_HELD, arguments).scalar_one())
    database = connection.exec_driver_sql("PRAGMA database_list").one()[2]
    try:
        file = os.open(lock_file(Path(database), names.schema), os.O_RDONLY)
    except OSError:  # No server has run here, or this user may not read its lock file.
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
