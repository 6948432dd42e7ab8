"""Who may record: one holder at a time, on Postgres by an advisory lock, on SQLite by a lock on a file of ours."""

import fcntl
import os
from pathlib import Path

import sqlalchemy as sa
import trio

from airy_trio.changes.changelog import TABLE
from airy_trio.database import LOCK_CLASS, DatabaseRefused, DatabaseUnavailable, Names, Session

SESSION_TIMEOUTS = {"idle_session_timeout": "1s", "idle_in_transaction_session_timeout": "1s"}
"""What every session of a recorder sets: a frozen holder loses the lease, and an open append, within a second."""

_TRY = sa.text("select pg_try_advisory_lock(:lock_class, cast(cast(to_regclass(:name) as oid) as int))")


class PostgresLease:
    """``Lease`` by a session's advisory lock on (our class, the change log's oid). It is polled, never waited for.

    A blocked waiter would hold back vacuum for as long as it waits (findings on the data layer, 10).
    """

    def __init__(self, session: Session, names: Names) -> None:
        self._session = session
        self._name = names.quoted(TABLE)
        self._generation = 0

    async def try_acquire(self) -> bool:
        """See ``Lease.try_acquire``. Raises ``DatabaseUnavailable``."""
        if self._generation and self._generation == self._session.generation:
            return True
        arguments = {"lock_class": LOCK_CLASS, "name": self._name}
        if await self._session.run(lambda connection: connection.execute(_TRY, arguments).scalar_one()):
            self._generation = self._session.generation
            return True
        return False

    async def release(self) -> None:
        """See ``Lease.release``: the session is closed."""
        self._generation = 0
        await self._session.aclose()


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
        await trio.lowlevel.checkpoint()
        if self._file is not None:
            os.close(self._file)
            self._file = None

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
