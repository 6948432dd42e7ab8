"""The doorbell: how a sleeping recorder is woken by a commit, at no cost for the application while it is awake.

An unconditional NOTIFY costs the application most of its throughput. So a trigger
notifies only while somebody sleeps, which an advisory lock tells: the sleeper holds it alone, and each writing
transaction tries to share it until its end. Where it cannot, it rings.

Nobody is overslept. A transaction that shares the lock did not ring, and while it is open the lock cannot be taken; a
transaction that ends lets go of its locks after its rows are visible. So whoever has taken the lock looks once more
and has then seen everything that did not ring. It is taken by *try*: a waiter would hold back vacuum. It may be kept
over a ring: then the next transaction rings as well.
"""

import math
from typing import Final

import sqlalchemy as sa
import trio

from airy_trio.capture.change_log import TABLE
from airy_trio.database import LOCK_CLASS, DedicatedConnection, Names, quote_identifier, quote_text
from airy_trio.database.postgres import Pipeline, Statement

BELL_CLASS: Final = LOCK_CLASS + 1
_TRY = sa.text(
    # a transaction that has rung could not be prepared for a two-phase commit
    "select current_setting('max_prepared_transactions') = '0' and "
    "pg_try_advisory_lock(:lock_class, cast(cast(to_regclass(:name) as oid) as int))"
)
_UNLOCK = "select pg_advisory_unlock({lock_class}, cast(cast(to_regclass({name}) as oid) as int))"


HURRY_S: Final = 0.01
"""Between two rings: sooner than this the sleeper is better awake. It takes as long to fall asleep again."""


class Wakeup:
    """The sleeper's side, over the session that it sleeps in. One task at a time."""

    def __init__(self, session: DedicatedConnection, names: Names) -> None:
        self._session = session
        self._arguments = {"lock_class": BELL_CLASS, "name": names.quoted(TABLE)}
        unlock = _UNLOCK.format(lock_class=BELL_CLASS, name=quote_text(names.quoted(TABLE)))
        self._unlock = sa.text(unlock.replace(":", r"\:"))
        self._letting_go = Statement("airy_unlock", unlock)
        self._listen = f"listen {quote_identifier(channel(names))}"
        self._listening_in = 0
        self._armed_in = 0
        self._rung_at = -math.inf
        self.rung = False
        """Whether the last ``wait`` heard it. Who has read what there was takes this back."""
        self.hurried = False
        """Whether that was soon after the time before: then writers are better told to ring no longer."""

    @property
    def armed(self) -> bool:
        """Whether writers ring now: the session has not been lost since the lock was taken."""
        return self._armed_in != 0 and self._armed_in == self._session.generation

    async def arm(self) -> bool:
        """Have writers ring from now on, if no transaction is open that does not. Then look once more, then ``wait``.

        Raises ``DatabaseUnavailable``.
        """
        if not await self._session.run(self._arm):
            return False
        self._armed_in = self._session.generation
        return True

    def disarm(self, connection: sa.Connection) -> None:
        """Have writers ring no longer. For a unit of work of the session. Idempotent."""
        if self.armed:
            connection.execute(self._unlock)
        self._armed_in, self.rung = 0, False

    def letting_go(self) -> list[tuple[Statement, tuple[()]]]:
        """What a conversation of the session must ask for so that writers ring no longer. They count as told."""
        was_armed, self._armed_in, self.rung = self.armed, 0, False
        return [(self._letting_go, ())] if was_armed else []

    async def wait(self, timeout_s: float) -> None:
        """Return when it has been rung since it was armed, or after a time. Raises ``DatabaseUnavailable``."""
        self.rung = False
        with trio.move_on_after(timeout_s):
            socket = await self._session.run_pipeline(_take_notifications)
            if socket is not None:
                await trio.lowlevel.wait_readable(socket)
            now = trio.current_time()
            self.rung, self.hurried, self._rung_at = True, now - self._rung_at < HURRY_S, now

    def _arm(self, connection: sa.Connection) -> bool:
        if self._listening_in != self._session.generation:
            connection.exec_driver_sql(self._listen)
            self._listening_in = self._session.generation
        armed: bool = connection.execute(_TRY, self._arguments).scalar_one()
        return armed


def channel(names: Names) -> str:
    """The channel on which it rings."""
    return f"{names.schema}_changes"


def ring(names: Names, condition: str) -> str:
    """The writer's side, as a statement of a trigger function, under a condition."""
    oid = f"{quote_text(names.quoted(TABLE))}::regclass::oid::int"
    return (
        f"if {condition} and not pg_try_advisory_xact_lock_shared({BELL_CLASS}, {oid}) then "
        f"perform pg_notify({quote_text(channel(names))}, ''); end if"
    )


async def _take_notifications(pipeline: Pipeline) -> int | None:  # noqa: ASYNC124 - a conversation in which nobody speaks
    """The socket on which one may come; None if there were some. They may have come along with another answer."""
    return None if pipeline.notifications() else pipeline.socket
