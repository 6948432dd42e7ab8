"""Wake a sleeping recorder when a Postgres transaction commits, at no cost while the recorder is awake.

Postgres commits notifying transactions one after another, even if no session listens, which costs an application most
of its throughput (``docs/explanation/architecture.md``). Polling costs it nothing, but then an idle server is never
idle.

Therefore the triggers notify only while the recorder sleeps. An advisory lock tells them whether it does::

    recorder                                      writing transaction, in the trigger

    LISTEN, once for each connection
    try to take the lock exclusively              try to share the lock until the transaction ends
        not granted: keep polling, try later          granted: the recorder is awake; do nothing
        granted: writers notify from now on           not granted: the recorder sleeps; NOTIFY
    read once more
    wait for a notification, then read
    release the lock, or keep it

No commit is missed. A transaction that shares the lock does not notify, and while it is open the recorder cannot take
the lock. Postgres releases the locks of a transaction after its rows have become visible. So when the recorder has the
lock, each transaction that did not notify has ended, and the read that follows sees its rows; every other transaction
that writes will find the lock taken and notify. A notification arrives after the commit, so the read that it causes
sees the rows too. Measured with 800 commits and no timer: 287 sleeps, no wake-up lost, and the application as fast as
without.

- The recorder *tries* to take the lock. If it waited for the lock, its snapshot would hold back vacuum meanwhile.
- The recorder may keep the lock while it reads; then the next transaction notifies again. This suits rare changes: a
  NOTIFY is cheap for one writer, and taking the lock again costs a round trip. If notifications follow each other
  within ``FREQUENT_S``, or there are many changes, the lock is released together with the read, and the recorder polls.
- A transaction that has notified cannot be prepared for a two-phase commit. If the server allows prepared transactions,
  the lock is never taken and the recorder polls.
- The lock ends with its connection. A recorder that has lost its connection notices it by ``generation``.
- The lock's key contains the oid of the change log, so several change logs in one database do not disturb each other.
"""

import math
from typing import Final

import trio

from airy_trio.capture.change_log import TABLE
from airy_trio.database import LOCK_CLASS, DedicatedConnection, Names, quote_identifier, quote_text
from airy_trio.database.postgres import Pipeline, Statement

WAKEUP_CLASS: Final = LOCK_CLASS + 1  # the first half of the advisory lock's key
FREQUENT_S: Final = 0.01  # notifying more often would cost the application, whose notifying commits wait in line


class Wakeup:
    """The recorder's side, over the connection on which it waits. Used by one task at a time."""

    def __init__(self, connection: DedicatedConnection, names: Names) -> None:
        self._connection = connection
        key = f"{WAKEUP_CLASS}, cast(cast(to_regclass({quote_text(names.quoted(TABLE))}) as oid) as int)"
        self._lock = Statement(
            "airy_lock",
            f"select current_setting('max_prepared_transactions') = '0' and pg_try_advisory_lock({key})",
        )
        self._unlock = Statement("airy_unlock", f"select pg_advisory_unlock({key})")
        self._listen = Statement("airy_listen", f"listen {quote_identifier(_channel(names))}")
        self._listening_in = 0  # generation of the connection
        self._armed_in = 0
        self._notified_at = -math.inf
        self.notified = False
        """Whether the last ``wait`` ended with a notification. The reader that answers it sets this to False."""
        self.frequent = False
        """Whether that notification followed the one before within ``FREQUENT_S``: release the lock."""

    @property
    def armed(self) -> bool:
        """Whether writers notify now: the lock was taken, and its connection has not been lost since."""
        return self._armed_in != 0 and self._armed_in == self._connection.generation

    async def arm(self) -> bool:
        """Try to make writers notify from now on. If it returns True, read once more, then ``wait``.

        False while a transaction is open that has not notified. Raises ``DatabaseUnavailable``.
        """
        if not await self._connection.run_pipeline(self._try_lock):
            return False
        self._armed_in = self._connection.generation
        return True

    def disarming(self) -> list[tuple[Statement, tuple[()]]]:
        """The statements that make writers stop notifying, which the caller must run."""
        was_armed, self._armed_in, self.notified = self.armed, 0, False
        return [(self._unlock, ())] if was_armed else []

    async def wait(self, timeout_s: float) -> None:
        """Return when a writer has notified since ``arm``, or after a time. Raises ``DatabaseUnavailable``."""
        self.notified = False
        with trio.move_on_after(timeout_s):
            socket = await self._connection.run_pipeline(_take_notifications)
            if socket is not None:
                await trio.lowlevel.wait_readable(socket)
            now = trio.current_time()
            self.notified, self.frequent, self._notified_at = True, now - self._notified_at < FREQUENT_S, now

    async def _try_lock(self, pipeline: Pipeline) -> bool:
        if self._listening_in != self._connection.generation:
            await pipeline.run((self._listen, ()))
            self._listening_in = self._connection.generation
        [[(granted,)]] = await pipeline.run((self._lock, ()))
        return bool(granted)


def notify(names: Names, condition: str) -> str:
    """The writer's side, as a statement of a trigger function: under a condition, notify a recorder that sleeps."""
    oid = f"{quote_text(names.quoted(TABLE))}::regclass::oid::int"
    return (
        f"if {condition} and not pg_try_advisory_xact_lock_shared({WAKEUP_CLASS}, {oid}) then "
        f"perform pg_notify({quote_text(_channel(names))}, ''); end if"
    )


def _channel(names: Names) -> str:
    return f"{names.schema}_changes"


async def _take_notifications(pipeline: Pipeline) -> int | None:  # noqa: ASYNC124 - it sends nothing
    """The socket on which a notification will arrive; None if some have arrived, perhaps along with an answer."""
    return None if pipeline.notifications() else pipeline.socket
