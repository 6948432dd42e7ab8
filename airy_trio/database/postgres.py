"""Connections to Postgres that detect a server that has stopped answering, and statements without a thread on them.

Half-open connections. A proxy that hangs, a frozen host or a network that drops packets leaves a connection on which
nothing arrives and nothing fails, so a thread that waits for an answer may wait for hours. A time limit alone would
also end statements that are merely slow (deleting a backlog, a table without an index), and since each retry would end
the same way, they would never succeed. Therefore, when nothing has arrived for ``answer_timeout_s``, another connection
checks whether the server is still working on the statement. If it is, the wait goes on. If it is not, or if no other
connection can be opened, the wait goes on for ``LATE_ANSWER_S``, because an answer may be on its way. If nothing
arrives, this connection is closed, and the caller gets the error of a lost connection. The waiting thread does all of
this itself, so no thread or connection is left behind.

Pipelines. A few statements are on the route from a commit to the clients. A thread hop costs more than such a
statement, and a round trip as much as a small one. So ``Pipeline`` sends several statements in one round trip and waits
for the answers in Trio. It uses libpq directly, whose sockets do not block. Parameters are bytes: the UTF-8 of a text,
because our engines set that encoding. Results are converted by the driver.
"""

import math
import select
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from itertools import chain, repeat
from typing import Any, Final, Self

import psycopg
import sqlalchemy as sa
import trio
from attrs import frozen
from psycopg import capabilities, generators, pq, waiting
from psycopg.abc import RV, PQGen
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from sqlalchemy.dialects import postgresql

ANSWER_TIMEOUT_S: Final = 10.0
"""Nothing has arrived for this long: check whether the server is working. Each check costs a connection."""
ANSWER_TIMEOUT_POOLED_S: Final = 60.0
"""The same through a pooler, behind which the server cannot be checked: longer than any read of the event log takes."""
CHECK_TIMEOUT_S: Final = 5.0
"""How long the answer to that check may take."""
LATE_ANSWER_S: Final = 1.0
"""How long to wait for an answer that may be on its way, because the statement ended during the check."""

CANCEL_TIMEOUT_S: Final = 10.0
"""How long the request to end a statement may take."""

_WORKING: Final = (
    "select exists (select from pg_stat_activity where pid = %s "
    "and state in ('active', 'disabled') "  # disabled: track_activities is off, so it is not known
    "and wait_event_type is distinct from 'Client')"  # it waits for us, so something was lost on its way
)


class MonitoredConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server has stopped answering.

    ``answer_timeout_s``: how long nothing may arrive before the server is checked. ``open_another``: opens a connection
    to the same server; None: it cannot be checked.
    """

    answer_timeout_s = ANSWER_TIMEOUT_S
    open_another: Callable[[], Self] | None = None
    _stalled: psycopg.OperationalError | None = None

    @classmethod
    def opened(cls, *arguments: Any, **options: Any) -> Self:  # noqa: ANN401 - those of psycopg.connect
        """Connect; the arguments are those of ``psycopg.connect``."""
        made = cls.connect(*arguments, **options)
        # A check has to reach the same server, but the URL may list several hosts, and a name may have several
        # addresses, for example one name for all standbys. Without an address libpq has connected to a Unix socket.
        place = {"host": made.info.host, "hostaddr": made.info.hostaddr or None, "port": made.info.port}
        # ``connect``, not this method: a connection that checks another one is not checked over a third one.
        made.open_another = partial(cls.connect, *arguments, **options | place)
        # psycopg itself prepares nothing: after a rollback it deallocates all prepared statements of the session, not
        # only its own, if it has any.
        made.prepared_max = 0
        return made

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:  # noqa: ANN401 - those of psycopg
        """Wait for an answer. Raises ``psycopg.OperationalError`` if the server has stopped answering."""
        return super().wait(self._watched(gen), *arguments, **options)

    def rollback(self) -> None:
        """Roll back; on a connection that was closed here raise the reason, which would otherwise be lost."""
        if self._stalled is not None:
            raise self._stalled
        super().rollback()

    def is_pooled(self) -> bool:
        """Return whether a pooler is in between: the process that answers is not the one that libpq connected to."""
        [(pid,)] = self.execute("select pg_backend_pid()").fetchall()
        return bool(pid != self.info.backend_pid)

    def allow_for_pooler(self) -> None:
        """Extend the answer time-out if a pooler is in between."""
        if self.is_pooled():
            self.answer_timeout_s = ANSWER_TIMEOUT_POOLED_S

    def is_working(self) -> bool:
        """Check over another connection whether the server is working on a statement of this one.

        Blocks for at most the sum of the connect time-out, ``CHECK_TIMEOUT_S`` and ``LATE_ANSWER_S``. Returns False if
        the server cannot be reached.
        """
        if self.open_another is None:
            return False
        try:
            with self.open_another() as other:
                other.answer_timeout_s = CHECK_TIMEOUT_S
                # If ALTER ROLE … SET role applies, this session has a role that cannot see what the login role runs.
                # Local, because a pooler may lend the session to other programs, which rely on that role.
                other.execute("set local role none")
                [(is_working,)] = other.execute(_WORKING, [self.info.backend_pid]).fetchall()
        except psycopg.Error:
            return False
        return bool(is_working)

    def stalled(self) -> psycopg.OperationalError:
        """Close the connection and return the error to raise."""
        self.pgconn.finish()
        self._stalled = psycopg.OperationalError(f"no answer for {self.answer_timeout_s:g} s")
        return self._stalled

    def _watched(self, gen: PQGen[RV]) -> PQGen[RV]:
        """Wrap the generator of a wait: check the server when nothing has arrived for ``answer_timeout_s``."""
        deadline, is_working = time.monotonic() + self.answer_timeout_s, True
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                # psycopg resumes the generator at short intervals, with this value if nothing has arrived.
                if ready != waiting.READY_NONE:
                    deadline, is_working = time.monotonic() + self.answer_timeout_s, True
                elif time.monotonic() >= deadline:
                    if not is_working:
                        raise self.stalled()
                    is_working = self.is_working()
                    deadline = time.monotonic() + (self.answer_timeout_s if is_working else LATE_ANSWER_S)
                wanted = gen.send(ready)
        except StopIteration as ended:
            result: RV = ended.value
            return result


Parameter = bytes | None
Row = tuple[Any, ...]

TLS_REST_S: Final = 0.02
"""How long to wait for the rest of an answer over TLS before reading what OpenSSL may have buffered.

A TLS record can hold 16 KiB, and pqReadData of some versions of libpq (18.0; no longer 17.11 and 18.6) takes only as
much of it as it has room for. The rest has left the socket, which then never becomes readable. libpq's own waiting
takes that into account; ours cannot."""

SLICE_ROWS: Final = 500
"""Rows converted between two checkpoints: about a millisecond."""

COMPILED_MAX: Final = 1024
"""Compiled statements that are cached. A server has fewer than a hundred."""

_FAILED: Final = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)


@frozen
class Statement:
    """A statement with parameters ``$1`` and so on.

    ``binary``: the indexes, from 0, of the parameters in binary format; the others are text.
    """

    sql: str
    binary: frozenset[int] = frozenset()

    def formats(self, count: int) -> list[pq.Format]:
        """Return the formats of ``count`` parameters."""
        return [pq.Format.BINARY if index in self.binary else pq.Format.TEXT for index in range(count)]


def text_parameters(*values: object) -> list[Parameter]:
    """Return parameters in text format. None is NULL."""
    return [None if value is None else str(value).encode() for value in values]


def compiled(statement: Any, values: Mapping[str, Any]) -> tuple[Statement, list[Parameter]]:  # noqa: ANN401 - SQLAlchemy's
    """Return a SQLAlchemy statement, compiled on first use, and its parameters. ``values``: parameters by name."""
    made, constants, encoders = _compiled(statement)
    given = {**constants, **values}
    return made, [encode(given[name]) for name, encode in encoders]


@lru_cache(maxsize=COMPILED_MAX)
def _compiled(
    statement: Any,  # noqa: ANN401 - SQLAlchemy's
) -> tuple[Statement, Mapping[str, Any], Sequence[tuple[str, Callable[[Any], bytes]]]]:
    """Return a statement for pipelines, its constant parameters, and for each parameter its name and its encoder."""
    made = statement.compile(dialect=postgresql.dialect(paramstyle="numeric_dollar"))  # type: ignore[no-untyped-call]
    binds = [made.binds[name] for name in made.positiontup or ()]
    arrays = (index for index, bind in enumerate(binds) if isinstance(bind.type, sa.ARRAY))
    constants = {bind.key: bind.value for bind in binds if not bind.required}
    return Statement(str(made), frozenset(arrays)), constants, [(bind.key, _encoder(bind.type)) for bind in binds]


def _encoder(type_: Any) -> Callable[[Any], bytes]:  # noqa: ANN401 - SQLAlchemy's
    if isinstance(type_, sa.ARRAY):
        names = {sa.Text: "text", sa.LargeBinary: "bytea", sa.BigInteger: "int8"}
        return partial(array, names[type(type_.item_type)])
    return lambda value: str(value).encode()


def _send_cancel(request: pq.abc.PGcancelConn) -> None:
    """Send a request to end a statement, and wait until the server has it. Raises ``psycopg.Error``.

    ``PGcancel.cancel`` would do the same, but it holds the interpreter's lock while it waits: as long as a server does
    not answer, no other thread would run.
    """
    request.start()
    waiting.wait_conn(generators.cancel(request), interval=CANCEL_TIMEOUT_S, timeout=CANCEL_TIMEOUT_S)


class Pipeline:
    """Runs statements on one connection, for one task at a time and while nothing else uses the connection."""

    def __init__(self, connection: MonitoredConnection) -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._loading = Transformer(connection)
        # ``postgres_engine`` sets None for a pooler, behind which a prepared statement may be in another session.
        self._prepares = connection.prepare_threshold is not None
        self._prepared: dict[str, bytes] = {}  # the names of prepared statements by their SQL

    @property
    def socket(self) -> int:
        """The descriptor of the socket, which becomes readable when something arrives."""
        return self._libpq.socket

    @property
    def idle(self) -> bool:
        """Whether no statement and no transaction is in progress."""
        return self._libpq.transaction_status == pq.TransactionStatus.IDLE

    def lost(self) -> bool:
        """Return whether something arrived on an idle connection that does not listen: the server has closed it.

        It may be a mere notice; then opening another connection is unnecessary but harmless. The end of the connection
        itself may not have arrived yet.
        """
        if self._libpq.status != pq.ConnStatus.OK:
            return True
        poll = select.poll()  # select.select rejects descriptors above 1023, which a server with many clients has
        poll.register(self._libpq.socket, select.POLLIN)
        return bool(poll.poll(0))

    def cancel(self) -> None:
        """Ask the server to end the statement in progress, in a thread that nothing waits for.

        Closing the connection would not end it: a server notices that only when it sends something.
        """
        if self._libpq.transaction_status == pq.TransactionStatus.ACTIVE:
            # libpq has this from version 17 on; the wheels of psycopg bring a newer one.
            safe = capabilities.has_cancel_safe()
            send = partial(_send_cancel, self._libpq.cancel_conn()) if safe else self._libpq.get_cancel().cancel
            trio.lowlevel.start_thread_soon(send, lambda _outcome: None)

    def notifications(self) -> list[str]:
        """Return the payloads of the notifications that have arrived since the last call, without waiting.

        Raises ``psycopg.OperationalError`` if the connection is lost.
        """
        payloads = [notification.payload for notification in self._connection.notifies(timeout=0)]
        while (early := self._libpq.notifies()) is not None:  # it arrived together with an answer
            payloads.append(early.extra.decode(errors="replace"))
        return payloads

    async def run(self, *statements: tuple[Statement, Sequence[Parameter]]) -> list[list[Row]]:
        """Run statements with their parameters, one after the other; return the rows of each.

        Unless they begin a transaction of their own, they are one.

        Error handling: raises ``psycopg.Error``. If the server rejected a statement, it has skipped the following ones,
        and the connection can be used; a transaction that had begun is in the failed state. After any other error, and
        after a cancellation, the connection must be closed, and it is not known whether the statements were executed.
        """
        # No ``finally`` leaves pipeline mode: after a cancellation or a lost connection that is not possible, and the
        # owner closes the connection (``DedicatedConnection.run_pipeline``).
        libpq = self._libpq
        libpq.enter_pipeline_mode()
        prepared = [sql for statement, parameters in statements for sql in self._send(statement, parameters)]
        libpq.pipeline_sync()
        await self._flush()
        results = await self._results()
        libpq.exit_pipeline_mode()
        # A statement that was rejected or skipped is not prepared. All others stay prepared, also after a rollback.
        for result, sql in zip(results, prepared, strict=True):
            if sql is not None and result.status != pq.ExecStatus.COMMAND_OK:
                del self._prepared[sql]
        # All results have been read. So the connection can be used after this error, and after a cancellation while
        # rows are converted.
        _raise_failed(results)
        return [await self._rows(result) for result, sql in zip(results, prepared, strict=True) if sql is None]

    async def copy(self, sql: str, parts: Iterable[bytes]) -> None:
        """Run a ``COPY FROM STDIN (FORMAT binary)`` in the transaction in progress, with parts made by ``copied_rows``.

        The next part is made while the server works on those before it; after each there is a checkpoint. Error
        handling: see ``run``; after any error the connection must be closed.
        """
        # Not in pipeline mode, in which libpq does not support COPY.
        libpq = self._libpq
        libpq.send_query(sql.encode())
        await self._flush()
        _raise_failed(await self._results())
        for part in chain((_COPY_HEAD,), parts, (_COPY_END,)):
            while not libpq.put_copy_data(part):
                await self._wait_to_send()
            await self._flush()
            await trio.lowlevel.checkpoint()
        libpq.put_copy_end()
        await self._flush()
        _raise_failed(await self._results())

    def _send(self, statement: Statement, parameters: Sequence[Parameter]) -> list[str | None]:
        """Send a statement, prepared if possible. Return for each result the SQL it prepares; None if it has rows."""
        sql, formats = statement.sql, statement.formats(len(parameters))
        if not self._prepares:
            self._libpq.send_query_params(sql.encode(), parameters, param_formats=formats)
            return [None]
        name = self._prepared.get(sql)
        if name is not None:
            self._libpq.send_query_prepared(name, parameters, param_formats=formats)
            return [None]
        # Named after its text: behind a pooler that was not declared, a name must mean the same text in each session.
        name = self._prepared[sql] = b"airy_" + sha256(sql.encode()).hexdigest()[:32].encode()
        self._libpq.send_prepare(name, sql.encode())
        self._libpq.send_query_prepared(name, parameters, param_formats=formats)
        return [sql, None]

    async def _flush(self) -> None:
        while self._libpq.flush():
            await self._wait_to_send()

    async def _wait_to_send(self) -> None:
        """Wait until libpq can send more, and read what arrives in the meantime.

        A server that has large results to send reads nothing until it has sent them. If we did not read either, both
        sides would wait for each other.
        """
        with trio.move_on_after(self._connection.answer_timeout_s) as waiting:
            await self._ready_to_send()
        if waiting.cancelled_caught:
            await self._require_working(self._ready_to_send)
        self._libpq.consume_input()

    async def _ready_to_send(self) -> None:
        """Wait until the socket can be written to or read."""
        async with trio.open_nursery() as nursery:

            async def wait(ready: Callable[[int], Awaitable[None]]) -> None:
                await ready(self._libpq.socket)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, trio.lowlevel.wait_readable)
            nursery.start_soon(wait, trio.lowlevel.wait_writable)

    async def _require_working(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Raise ``psycopg.OperationalError`` unless the server is working or ``wait`` ends within ``LATE_ANSWER_S``."""
        if not await trio.to_thread.run_sync(self._connection.is_working, abandon_on_cancel=True):
            with trio.move_on_after(LATE_ANSWER_S) as late:
                await wait()
            if late.cancelled_caught:
                raise self._connection.stalled()

    async def _results(self) -> list[pq.abc.PGresult]:
        """Return all results: of a pipeline up to the synchronisation, of a COPY up to where it expects data.

        If the connection is lost, the server may have sent the reason as the result of a statement.
        """
        results: list[pq.abc.PGresult] = []
        try:
            await self._receive(results)
        except psycopg.OperationalError:
            for result in results:
                if result.status in _FAILED and result.error_field(pq.DiagnosticField.SQLSTATE):
                    raise error_from_result(result) from None
            raise
        return results

    async def _receive(self, results: list[pq.abc.PGresult]) -> None:
        """Add the results up to the last one, which never arrives if libpq has given up the connection."""
        # Infinite at first: before anything has arrived, OpenSSL cannot have buffered a rest (``TLS_REST_S``).
        patience_s = math.inf
        check_at = trio.current_time() + self._connection.answer_timeout_s
        while True:
            while self._libpq.is_busy():
                with trio.move_on_at(min(check_at, trio.current_time() + patience_s)) as waiting:
                    await trio.lowlevel.wait_readable(self._libpq.socket)
                if not waiting.cancelled_caught:
                    check_at = trio.current_time() + self._connection.answer_timeout_s
                elif trio.current_time() >= check_at:
                    await self._require_working(partial(trio.lowlevel.wait_readable, self._libpq.socket))
                    check_at = trio.current_time() + self._connection.answer_timeout_s
                self._libpq.consume_input()
                if self._libpq.ssl_in_use:
                    patience_s = TLS_REST_S
            result = self._libpq.get_result()
            if result is None and self._libpq.status != pq.ConnStatus.OK:  # libpq did not understand the answer
                raise psycopg.OperationalError(self._libpq.get_error_message())
            if result is not None and result.status != pq.ExecStatus.PIPELINE_SYNC:
                results.append(result)
            if self._is_last(result):
                return

    def _is_last(self, result: pq.abc.PGresult | None) -> bool:
        if result is None:  # the end of a statement: in a pipeline, more may follow
            return self._libpq.pipeline_status == pq.PipelineStatus.OFF
        return result.status in {pq.ExecStatus.PIPELINE_SYNC, pq.ExecStatus.COPY_IN}

    async def _rows(self, result: pq.abc.PGresult) -> list[Row]:
        """Convert a result, with a checkpoint after each ``SLICE_ROWS``."""
        self._loading.set_pgresult(result)
        rows = self._loading.load_rows(0, min(result.ntuples, SLICE_ROWS), tuple)
        while len(rows) < result.ntuples:
            await trio.lowlevel.checkpoint()
            rows += self._loading.load_rows(len(rows), min(result.ntuples, len(rows) + SLICE_ROWS), tuple)
        return rows


_ELEMENTS: Final[Mapping[str, tuple[int, Callable[[Any], bytes]]]] = {
    "bool": (16, (b"\0", b"\1").__getitem__),
    "bytea": (17, bytes),
    "int8": (20, struct.Struct("!q").pack),
    "text": (25, str.encode),
}
"""The types of arrays: the oid of the element, and its octets."""
_SIZE: Final = struct.Struct("!i").pack
_NULL: Final = _SIZE(-1)


def array(type_: str, values: Sequence[object]) -> bytes:
    """Return an array of ``type_`` in binary format, in which no element needs escaping. None is NULL."""
    oid, _ = _ELEMENTS[type_]
    if not values:
        return struct.pack("!iiI", 0, 0, oid)
    head = struct.pack("!iiIii", 1, None in values, oid, len(values), 1)  # dimensions, NULLs, type, length, first index
    return head + b"".join(_sized(type_, values))


_COPY_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_COPY_END: Final = struct.pack("!h", -1)


def copied_rows(types: Iterable[str], columns: Sequence[Sequence[object]]) -> bytes:
    """Return rows in the binary format of COPY, given as columns, which must not be empty. None is NULL."""
    count = struct.pack("!h", len(columns))
    return b"".join(chain.from_iterable(zip(repeat(count), *map(_sized, types, columns))))


def _sized(type_: str, values: Sequence[object]) -> list[bytes]:
    """Return the octets of each value, preceded by their number."""
    _, dumped = _ELEMENTS[type_]

    def sized(value: object) -> bytes:
        if value is None:
            return _NULL
        octets = dumped(value)
        return _SIZE(len(octets)) + octets

    # Half the columns of a bulk change have one value.
    if values.count(values[0]) == len(values):
        return [sized(values[0])] * len(values)
    return [sized(value) for value in values]


def _raise_failed(results: Iterable[pq.abc.PGresult]) -> None:
    for result in results:
        if result.status in _FAILED:
            raise error_from_result(result)
