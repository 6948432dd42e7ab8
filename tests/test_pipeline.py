"""Pipelines, awaited in Trio: several statements in one round trip, failures, large data, and lost connections."""

import os
import resource
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import trio

from airy_trio.database.postgres import MonitoredConnection, Pipeline, Statement
from tests.certificates import issue
from tests.tls_proxy import RECORD_BYTES_MAX, tls_proxy

ECHO = Statement("select $1::text, $2::bytea", frozenset({1}))
BEGIN, COMMIT = Statement("begin"), Statement("commit")
ROW_BYTES = 11
"""The size of a row with one column, without its content."""
XID = Statement("select pg_current_xact_id()::text")


def connect(database: str, **options: Any) -> MonitoredConnection:  # noqa: ANN401 - the driver's own
    url = sa.make_url(database).set(drivername="postgresql").render_as_string(hide_password=False)
    return MonitoredConnection.opened(url, **options)


@pytest.fixture(params=[5, None], ids=["prepared", "behind a pooler"])
def connection(request: pytest.FixtureRequest, postgres_database: str) -> Iterator[MonitoredConnection]:
    with connect(postgres_database, prepare_threshold=request.param) as made:
        yield made


async def test_each_statement_has_its_rows(connection: MonitoredConnection) -> None:
    pipeline = Pipeline(connection)
    for _ in range(2):  # the second time they are already prepared
        found = await pipeline.run((ECHO, ["ü".encode(), b"\0\\x"]), (BEGIN, []), (ECHO, [None, b""]), (COMMIT, []))
        assert found == [[("ü", b"\0\\x")], [], [(None, b"")], []]


async def test_statements_without_begin_are_one_transaction(connection: MonitoredConnection) -> None:
    pipeline = Pipeline(connection)
    first, second = await pipeline.run((XID, []), (XID, []))
    assert first == second
    assert await pipeline.run((XID, [])) != [first]


async def test_transaction_spans_round_trips_and_the_driver_continues(connection: MonitoredConnection) -> None:
    pipeline = Pipeline(connection)
    _, first = await pipeline.run((BEGIN, []), (XID, []))
    second, _ = await pipeline.run((XID, []), (COMMIT, []))
    assert first == second
    assert connection.execute("select pg_current_xact_id()::text").fetchone() != second[0][0]


async def test_failing_statement_raises_and_undoes_the_others(connection: MonitoredConnection) -> None:
    pipeline = Pipeline(connection)
    make = Statement("create table made (x int)")
    with pytest.raises(psycopg.errors.DivisionByZero) as caught:
        await pipeline.run((make, []), (Statement("select 1 / $1::int8"), [b"0"]), (ECHO, [b"x", b"y"]))
    assert caught.value.sqlstate == "22012"
    assert connection.execute("select to_regclass('made')").fetchone() == (None,)


async def test_connection_is_usable_after_an_error(connection: MonitoredConnection) -> None:
    pipeline = Pipeline(connection)
    divide, rollback = Statement("select 1 / $1::int8"), Statement("rollback")
    for _ in range(2):  # what the server skipped was not prepared
        with pytest.raises(psycopg.errors.DivisionByZero):
            await pipeline.run((BEGIN, []), (divide, [b"0"]), (ECHO, [b"x", b"y"]), (COMMIT, []))
        await pipeline.run((rollback, []))
    found = await pipeline.run((BEGIN, []), (divide, [b"1"]), (ECHO, [b"x", b"y"]), (COMMIT, []))
    assert found == [[], [(1,)], [("x", b"y")], []]


async def test_query_larger_than_the_socket_buffer_is_sent(connection: MonitoredConnection) -> None:
    large = b"x" * 20_000_000
    [[(length,)]] = await Pipeline(connection).run(
        (Statement("select octet_length($1::bytea)", frozenset({0})), [large])
    )
    assert length == len(large)


async def test_large_result_before_a_large_parameter_is_no_deadlock(connection: MonitoredConnection) -> None:
    rows = Statement("select repeat('x', $1::int)")
    with trio.fail_after(20):
        found = await Pipeline(connection).run((rows, [b"40000000"]), (ECHO, [b"y" * 40_000_000, b""]))
    assert [len(first) for [(first, *_)] in found] == [40_000_000, 40_000_000]


async def test_server_that_works_before_it_reads_on_is_waited_for(
    connection: MonitoredConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "answer_timeout_s", 0.5)
    sleep = Statement("select pg_sleep(2)::text")
    with trio.fail_after(20):
        _, [(text, _)] = await Pipeline(connection).run((sleep, []), (ECHO, [b"y" * 40_000_000, b""]))
    assert len(text) == 40_000_000


@pytest.mark.parametrize("first_bytes", [100, 700, 5000, 16_000])
async def test_rest_of_a_large_tls_record_is_read(postgres_database: str, tmp_path: Path, first_bytes: int) -> None:
    """Some versions of libpq, such as 18.0, leave the rest in OpenSSL; waiting for the socket would then hang."""
    files = issue(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    with connect(postgres_database) as direct:
        port = direct.info.port
    rows = Statement("select repeat('x', $1::int) from generate_series(1, $2::int)")
    async with tls_proxy(port, context, first_bytes) as proxy:
        database = sa.make_url(postgres_database).update_query_dict({"host": "127.0.0.1", "port": str(proxy)})
        shown = database.render_as_string(hide_password=False)
        with await trio.to_thread.run_sync(partial(connect, shown, sslmode="require")) as connection:
            assert connection.pgconn.ssl_in_use
            pipeline = Pipeline(connection)
            for length in range(400, 12_400, 400):
                for records in (1, 2, 4):
                    count = (first_bytes + records * RECORD_BYTES_MAX - 300) // (length + ROW_BYTES)
                    with trio.fail_after(5):
                        [found] = await pipeline.run((rows, [b"%d" % length, b"%d" % count]))
                    assert found == [("x" * length,)] * count


async def test_other_tasks_run_during_a_query(connection: MonitoredConnection) -> None:
    with connect_again(connection) as other:
        other.execute("select pg_advisory_lock(7)")
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Pipeline(connection).run, (Statement("select pg_advisory_lock(7)"), []))
                await Pipeline(other).run((Statement("select pg_advisory_unlock(7)"), []))


def connect_again(connection: MonitoredConnection) -> MonitoredConnection:
    return MonitoredConnection.opened(connection.info.dsn)


async def test_connection_lost_while_idle_is_detected(connection: MonitoredConnection) -> None:
    pipeline = Pipeline(connection)
    assert not pipeline.lost()
    await trio.to_thread.run_sync(cut, connection)
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(connection.fileno())
    assert pipeline.lost()
    with trio.fail_after(10), pytest.raises(psycopg.OperationalError):
        await notified_until_cancelled(pipeline, connection.fileno())


@pytest.mark.parametrize("terminated_at", ["before", "during"])
async def test_reason_for_the_end_of_a_session_is_raised(connection: MonitoredConnection, terminated_at: str) -> None:
    pipeline = Pipeline(connection)
    end = Statement("select pg_terminate_backend(pg_backend_pid())")
    if terminated_at == "before":
        await trio.to_thread.run_sync(cut, connection)
    with trio.fail_after(10), pytest.raises(psycopg.errors.AdminShutdown):
        await pipeline.run((BEGIN, []), (end, []), (ECHO, [b"x", b"y"]))


async def notified_until_cancelled(pipeline: Pipeline, socket: int) -> None:
    while True:  # the message with the reason, and then the end
        pipeline.notifications()
        await trio.lowlevel.wait_readable(socket)


async def test_lost_connection_is_detected_with_a_large_descriptor(postgres_database: str) -> None:
    """The connection has a descriptor number that is too large for ``select``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while (number := os.open(os.devnull, os.O_RDONLY)) < 1024:
            opened.callback(os.close, number)
        opened.callback(os.close, number)
        with connect(postgres_database) as connection:
            pipeline = Pipeline(connection)
            assert pipeline.socket > number
            assert not pipeline.lost()
            await trio.to_thread.run_sync(cut, connection)
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(pipeline.socket)
            assert pipeline.lost()


@pytest.mark.parametrize("answer", [b"Z\0\0\0\x03", b"\xff" * 9, b"D\x7f\xff\xff\xff"])
async def test_invalid_answer_counts_as_a_lost_connection(answer: bytes) -> None:
    """For such a connection libpq reports forever that there is no further result."""
    listening = socket.create_server(("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:
        with closing(listening):
            nursery.start_soon(trio.to_thread.run_sync, answer_wrongly, listening, answer)
            where = f"host=127.0.0.1 port={listening.getsockname()[1]} user=x sslmode=disable gssencmode=disable"
            connection = await trio.to_thread.run_sync(MonitoredConnection.opened, where)
        with closing(connection), pytest.raises(psycopg.OperationalError):
            await Pipeline(connection).run((ECHO, [b"x", b"y"]))


def answer_wrongly(listening: socket.socket, answer: bytes) -> None:
    """Accept one client as Postgres does, and answer its first query with these octets."""
    taken, _ = listening.accept()
    with taken:
        taken.recv(65536)
        for kind, body in (b"R", bytes(4)), (b"S", b"client_encoding\0UTF8\0"), (b"K", bytes(8)), (b"Z", b"I"):
            taken.sendall(kind + struct.pack("!I", len(body) + 4) + body)
        taken.recv(65536)
        taken.sendall(answer)
        taken.recv(65536)  # until it closes the connection


async def test_connection_lost_during_a_query_raises(connection: MonitoredConnection) -> None:
    with trio.fail_after(10), pytest.RaisesGroup(psycopg.OperationalError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Pipeline(connection).run, (Statement("select pg_sleep(60)"), []))
            await trio.to_thread.run_sync(cut, connection)


def cut(connection: MonitoredConnection) -> None:
    with connect_again(connection) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])


async def test_notification_is_returned_once(connection: MonitoredConnection) -> None:
    pipeline = Pipeline(connection)
    listen, notify = Statement("listen here"), Statement("notify here, 'ü'")
    assert pipeline.notifications() == []
    await pipeline.run((listen, []))
    await pipeline.run((notify, []))
    with trio.fail_after(10):
        while not (found := pipeline.notifications()):
            await trio.lowlevel.wait_readable(connection.fileno())
    assert found == ["ü"]
    assert pipeline.notifications() == []
