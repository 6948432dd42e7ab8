"""Connections to Postgres that notice when the server has stopped answering although the connection stays open.

A proxy that hangs, a frozen host or a network that drops packets leaves a connection half open: nothing comes and
nothing fails, so a thread that waits for an answer may wait for hours. A time limit by itself would also end statements
that are merely slow (a backlog that is deleted, a table without an index), and since each retry would end the same way,
they would never succeed. Therefore, when nothing has come for a while, another connection asks whether the server
still works on the statement. If it does, the wait goes on. If it does not, or if no other connection can be made, this
one is closed, and the caller gets the error of a lost connection. The thread that waits does all of this itself, so no
thread or connection is left behind.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Self

import psycopg
from psycopg import waiting
from psycopg.abc import RV, PQGen

ANSWER_TIMEOUT_S: Final = 10.0
"""Nothing came for this long: ask whether the server still works. Each look costs a connection, so not much sooner."""
ANSWER_TIMEOUT_POOLED_S: Final = 60.0
"""The same through a pooler, whose server cannot be asked: longer than any single read of the event log takes."""
LOOK_TIMEOUT_S: Final = 5.0
"""For the answer to that question."""

_WORKING: Final = (
    "select exists (select from pg_stat_activity where pid = %s "
    "and state in ('active', 'disabled') "  # disabled: track_activities is off, so nobody knows
    "and wait_event_type is distinct from 'Client')"  # which waits for us, so that something was lost on its way
)


class Connection(psycopg.Connection[Any]):
    """A connection that is closed when the server has stopped answering; see the module.

    ``answer_timeout_s``: how long nothing may come before that is looked into. ``open_another``: makes a connection
    like this one; None: no look is possible.
    """

    answer_timeout_s = ANSWER_TIMEOUT_S
    open_another: Callable[[], Self] | None = None
    _stalled: psycopg.OperationalError | None = None

    @classmethod
    def opened(cls, *arguments: Any, **options: Any) -> Self:  # noqa: ANN401 - those of psycopg.connect
        """Connect, with the arguments of ``psycopg.connect``."""
        made = cls.connect(*arguments, **options)
        made.open_another = partial(cls.connect, *arguments, **options)
        return made

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:  # noqa: ANN401 - those of psycopg
        """Wait for an answer. Raises ``psycopg.OperationalError`` where the server has stopped answering."""
        return super().wait(self._watched(gen), *arguments, **options)

    def rollback(self) -> None:
        """Roll back. On a connection that was closed here raise why, which else a caller would no longer learn."""
        if self._stalled is not None:
            raise self._stalled
        super().rollback()

    def is_pooled(self) -> bool:
        """Ask whether a pooler is in between: then another process answers than the one that libpq was told of."""
        [(pid,)] = self.execute("select pg_backend_pid()").fetchall()
        return bool(pid != self.info.backend_pid)

    def look_for_pooler(self) -> None:
        """Allow for longer silence if a pooler is in between."""
        if self.is_pooled():
            self.answer_timeout_s = ANSWER_TIMEOUT_POOLED_S

    def is_working(self) -> bool:
        """Ask over another connection whether the server works on what this one has sent.

        Blocks for at most the time-out of connecting and ``LOOK_TIMEOUT_S``. False where the server cannot be asked.
        """
        if self.open_another is None:
            return False
        try:
            with self.open_another() as other:
                other.answer_timeout_s = LOOK_TIMEOUT_S
                [(is_working,)] = other.execute(_WORKING, [self.info.backend_pid]).fetchall()
        except psycopg.Error:
            return False
        return bool(is_working)

    def stalled(self) -> psycopg.OperationalError:
        """Close the connection, and give the error to raise."""
        self.pgconn.finish()
        self._stalled = psycopg.OperationalError(f"no answer for {self.answer_timeout_s:g} s")
        return self._stalled

    def _watched(self, gen: PQGen[RV]) -> PQGen[RV]:
        """The same generator, resumed each time that something came, and now and then where nothing did."""
        heard_at = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready != waiting.READY_NONE:
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at >= self.answer_timeout_s:
                    if not self.is_working():
                        raise self.stalled()
                    heard_at = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as ended:
            result: RV = ended.value
            return result
