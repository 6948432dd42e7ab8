"""Statements sent to Postgres in one round trip, and waited for in Trio: no thread stands between question and answer.

For the few statements that lie between a commit and a client. A thread hop costs more than such a statement does, and
each round trip as much as a small one, so what can be asked together is. It speaks to libpq itself, whose sockets
do not block. Parameters are octets, of texts their UTF-8, as an engine of ours has it; answers are what the driver
makes of them. Refuses to know what is asked.

Connections to Postgres that notice when the server has stopped answering although the connection stays open.

A proxy that hangs, a frozen host or a network that drops packets leaves a connection half open: nothing comes and
nothing fails, so a thread that waits for an answer may wait for hours. A time limit by itself would also end statements
that are merely slow (a backlog that is deleted, a table without an index), and since each retry would end the same way,
they would never succeed. Therefore, when nothing has come for a while, another connection asks whether the server
still works on the statement. If it does, the wait goes on. If it does not, or if no other connection can be made, this
one is closed, and the caller gets the error of a lost connection. The thread that waits does all of this itself, so no
thread or connection is left behind.
"""

import math
import select
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Self

import psycopg
import trio
from attrs import frozen
from psycopg import pq, waiting
from psycopg.abc import RV, PQGen
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

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


class MonitoredConnection(psycopg.Connection[Any]):
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


Parameter = bytes | None
Row = tuple[Any, ...]

REST_S: Final = 0.02
"""How long the rest of an answer is waited for over TLS before what OpenSSL may have of it is asked for.

A record can hold 16 KiB, and pqReadData of many a libpq (18.0; no longer 17.11 and 18.6) takes of it what it has room
for: the rest has left the socket, which then never becomes readable. libpq's own waiting knows of it, ours cannot."""

_FAILED: Final = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)


@frozen
class Statement:
    """A statement with ``$1`` and so on for its parameters; ``name``: of its preparation, one for each text.

    ``octets``: the places, from 0, of the parameters that are given in binary form.
    """

    name: str
    sql: str
    octets: frozenset[int] = frozenset()

    def formats(self, count: int) -> list[pq.Format]:
        """The form of each of so many parameters."""
        return [pq.Format.BINARY if place in self.octets else pq.Format.TEXT for place in range(count)]


class Pipeline:
    """What is asked through one connection, by one task at a time and while nobody else uses the connection."""

    def __init__(self, connection: MonitoredConnection) -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._loading = Transformer(connection)
        self._prepares = connection.prepare_threshold is not None
        self._prepared: set[str] = set()

    @property
    def socket(self) -> int:
        """What becomes readable when something comes."""
        return self._libpq.socket

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, not even a transaction."""
        return self._libpq.transaction_status == pq.TransactionStatus.IDLE

    def lost(self) -> bool:
        """Whether something came that nobody asked for: where nobody listens, that the server has ended the connection.

        It may be a notice only; who opens another connection then loses nothing. The end itself may be yet to come.
        """
        if self._libpq.status != pq.ConnStatus.OK:
            return True
        looking = select.poll()  # select.select refuses numbers above 1023, which a server with many clients has
        looking.register(self._libpq.socket, select.POLLIN)
        return bool(looking.poll(0))

    def notified(self) -> list[str]:
        """The payloads that have come since the last call, as far as can be told without waiting.

        Raises ``psycopg.OperationalError`` where the connection is lost.
        """
        payloads = [notification.payload for notification in self._connection.notifies(timeout=0)]
        while (came_along := self._libpq.notifies()) is not None:  # with an answer
            payloads.append(came_along.extra.decode(errors="replace"))
        return payloads

    def disregard_notifications(self) -> None:
        """Forget those that have come up to now: for whoever waited until the ``socket`` was readable.

        Raises ``psycopg.OperationalError`` where the connection is lost.
        """
        self._libpq.consume_input()
        while self._libpq.notifies() is not None:
            pass

    async def run(self, *asked: tuple[Statement, Sequence[Parameter]]) -> list[list[Row]]:
        """Run statements with their parameters, one after the other; give the rows of each.

        Without a transaction of its own they are one. Raises ``psycopg.Error``: where the server refused a statement,
        it has skipped the following ones, and the connection can be used, in a failed transaction if one had begun.
        After any other error, and after a cancellation, the connection must be closed; whether the statements were
        executed is then not known.
        """
        libpq = self._libpq
        libpq.enter_pipeline_mode()
        prepared = [name for statement, parameters in asked for name in self._send(statement, parameters)]
        libpq.pipeline_sync()
        while libpq.flush():
            with trio.move_on_after(self._connection.answer_timeout_s) as waiting:
                await trio.lowlevel.wait_writable(libpq.socket)
            if waiting.cancelled_caught:
                raise self._connection.stalled()
        results = await self._results()
        libpq.exit_pipeline_mode()
        self._prepared -= {
            name
            for result, name in zip(results, prepared, strict=True)
            if name is not None and result.status != pq.ExecStatus.COMMAND_OK
        }
        for result in results:
            if result.status in _FAILED:
                raise error_from_result(result)
        return [self._rows(result) for result, name in zip(results, prepared, strict=True) if name is None]

    def _send(self, statement: Statement, parameters: Sequence[Parameter]) -> list[str | None]:
        """Return for each result that will come the name of the statement that it prepares; None: it is an answer."""
        formats = statement.formats(len(parameters))
        sql, name = statement.sql.encode(), statement.name.encode()
        if not self._prepares:
            self._libpq.send_query_params(sql, parameters, param_formats=formats)
            return [None]
        new = statement.name not in self._prepared
        if new:
            self._libpq.send_prepare(name, sql)
            self._prepared.add(statement.name)
        self._libpq.send_query_prepared(name, parameters, param_formats=formats)
        return [statement.name, None] if new else [None]

    async def _results(self) -> list[pq.abc.PGresult]:
        """Every result up to that of the synchronisation, which never comes where libpq has given the connection up."""
        results: list[pq.abc.PGresult] = []
        patience_s = math.inf
        look_at = trio.current_time() + self._connection.answer_timeout_s
        while True:
            while self._libpq.is_busy():
                with trio.move_on_at(min(look_at, trio.current_time() + patience_s)) as waiting:
                    await trio.lowlevel.wait_readable(self._libpq.socket)
                if not waiting.cancelled_caught:
                    look_at = trio.current_time() + self._connection.answer_timeout_s
                elif trio.current_time() >= look_at:
                    if not await trio.to_thread.run_sync(self._connection.is_working, abandon_on_cancel=True):
                        raise self._connection.stalled()
                    look_at = trio.current_time() + self._connection.answer_timeout_s
                self._libpq.consume_input()
                if self._libpq.ssl_in_use:
                    patience_s = REST_S
            result = self._libpq.get_result()
            if result is None:
                if self._libpq.status != pq.ConnStatus.OK:  # what the server said made no sense
                    raise psycopg.OperationalError(self._libpq.get_error_message())
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            results.append(result)

    def _rows(self, result: pq.abc.PGresult) -> list[Row]:
        self._loading.set_pgresult(result)
        return self._loading.load_rows(0, result.ntuples, tuple)
