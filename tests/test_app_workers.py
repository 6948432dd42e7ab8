"""Several workers on one port and their recorder process, as real processes that are killed, hang or cannot start."""

import itertools
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from trio.testing import MockClock

from airy_trio.admin.server import AdminOptions
from airy_trio.app.server import not_renewed
from airy_trio.app.supervisor import FAILURES_MAX, RECORDER, Worker, Workers
from airy_trio.settings import Settings, parse
from airy_trio.testing.client import Closed, Rejected, StompClient
from tests.admin.serving import Port
from tests.application import Application
from tests.command_line import accept_command
from tests.e2e.route import HOST, Listening, configure, listening
from tests.processes import AIRY_TRIO, Program, Server, free_ports, json_object, run, running

TIMEOUT_S = 60.0
CLIENTS = 16
PROGRAM = Path(sys.executable).resolve()
ROOT = Path(__file__).parents[1]


def config_of(application: Application, folder: Path, *, port: int = 0, admin_port: int = 0) -> Path:
    config = configure(application, folder, port=port, workers=2)
    text = config.read_text().replace("[admin]\nport = 0", f"[admin]\nport = {admin_port}")
    config.write_text(text.replace("[logging]\n", '[logging]\nlevel = "debug"\n'))
    return config


@asynccontextmanager
async def two_workers(config: Path) -> AsyncIterator[Server]:
    async with running(Server, [*AIRY_TRIO, "--config", str(config)]) as server:
        server.port = (await server.record("all workers listen"))["port"]
        yield server


async def later(server: Server, event: str, after: int, **facts: object) -> dict[str, Any]:
    """Return the first record of this kind from line ``after`` on."""
    for number in itertools.count(after):
        line = await server.err.line(number)
        assert line is not None, server.err.all
        found = json_object(line)
        if found.get("event") == event and facts.items() <= found.items():
            return found
    raise AssertionError


def workers_with(server: Server, event: str) -> list[int | str]:
    records = [json_object(line) for line in server.err.all]
    return [record["worker"] for record in records if record.get("event") == event]


async def pid_of(server: Server, name: int | str) -> int:
    pid: int = (await server.record("worker started", worker=name))["pid"]
    return pid


def newest_start(server: Server, name: int | str) -> dict[str, Any]:
    starts = [json_object(line) for line in server.err.all]
    return [start for start in starts if (start.get("event"), start.get("worker")) == ("worker started", name)][-1]


async def connect_from(server: Server, origin: str) -> None:
    """Connect as a browser does from a page of this origin, until CONNECTED."""
    async with StompClient(await trio.open_tcp_stream(HOST, server.port)) as client:
        await client.upgrade(HOST, headers=[("Origin", origin)])
        assert (await client.connect()).command == "CONNECTED"


async def next_or_resumed(client: Listening, server: Server, stack: AsyncExitStack) -> bool:
    """Receive the next event, after a reconnect if the client's worker was killed. Return whether it reconnected."""
    try:
        await client.next()
    except (Closed, trio.BrokenResourceError):
        again = await stack.enter_async_context(listening(server, after=client.events[-1].position))
        assert again.receipt.get("resume") == "resumed"
        client.events.append(await again.next())
        client.client = again.client
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("database", ["sqlite_application", "postgres_application"])
async def test_client_of_a_killed_worker_resumes_on_another(
    database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    application: Application = request.getfixturevalue(database)
    with trio.fail_after(TIMEOUT_S):
        async with two_workers(config_of(application, tmp_path)) as server, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(listening(server)) for _ in range(CLIENTS)]
            application.tag("before")
            for client in clients:
                await client.next()
            assert set(workers_with(server, "connection opened")) == {0, 1}
            assert workers_with(server, "recording") == [RECORDER], "the workers wait for the lease"
            before = len(server.err.all)
            os.kill(await pid_of(server, 0), signal.SIGKILL)
            await later(server, "worker exited; restarting", before, worker=0, exit_code=-signal.SIGKILL)
            application.tag("meanwhile")
            resumed = [await next_or_resumed(client, server, stack) for client in clients]
            assert {True, False} == set(resumed)
            await later(server, "all workers listen", before, port=server.port)
            application.tag("after")
            for client in clients:
                await client.next()
                assert [event.offset for event in client.events] == [1, 2, 3]
            server.process.send_signal(signal.SIGTERM)
            for client in clients:
                assert (await client.client.receive()).get("message") == "503-shutting-down"
                with pytest.raises(Closed, match="1012"):
                    await client.client.receive()
            assert await server.wait() == 0
    assert [line for line in server.err.all if not json_object(line)] == []
    assert set(workers_with(server, "stopping")) == {0, 1, RECORDER}


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
@pytest.mark.parametrize("database", ["sqlite_application", "postgres_application"])
async def test_worker_records_while_the_recorder_process_is_away(
    database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    application: Application = request.getfixturevalue(database)
    with trio.fail_after(2 * TIMEOUT_S):  # a standby records for ten seconds each time
        async with two_workers(config_of(application, tmp_path)) as server, listening(server) as client:
            application.tag("first")
            await client.next()
            for number in range(2):
                before = len(server.err.all)
                os.kill(newest_start(server, RECORDER)["pid"], signal.SIGKILL)
                application.tag(f"while it is away {number}")
                await client.next()
                await later(server, "recording", before, worker=RECORDER)
                application.tag(f"after {number}")
                await client.next()
            assert [event.offset for event in client.events] == [1, 2, 3, 4, 5]
            records = workers_with(server, "recording")
            offered = workers_with(server, "lease offered to the recorder process")
            assert len(offered) >= 2
            assert {*offered} <= {0, 1}
            assert (records[0], records[-1], records.count(RECORDER)) == (RECORDER, RECORDER, 3)
            assert workers_with(server, "connection closed") == []


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
async def test_worker_records_while_the_recorder_process_is_frozen(
    postgres_application: Application, tmp_path: Path
) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with two_workers(config_of(postgres_application, tmp_path)) as server, listening(server) as client:
            postgres_application.tag("first")
            await client.next()
            frozen, before = await pid_of(server, RECORDER), len(server.err.all)
            os.kill(frozen, signal.SIGSTOP)
            try:
                postgres_application.tag("meanwhile")
                await client.next()
                assert (await later(server, "recording", before))["worker"] in {0, 1}
            finally:
                os.kill(frozen, signal.SIGCONT)
            postgres_application.tag("after")
            await client.next()
            assert [event.offset for event in client.events] == [1, 2, 3]


@pytest.mark.slow
async def test_no_worker_outlives_its_parent(sqlite_application: Application, tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with two_workers(config_of(sqlite_application, tmp_path)) as server, listening(server) as client:
            server.process.kill()
            assert (await client.client.receive()).get("message") == "503-shutting-down"
            await server.wait()  # its pipes close with the last process
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(HOST, server.port)
    gone = set(workers_with(server, "parent process gone; stopping"))
    assert gone == {0, 1, RECORDER}, "\n".join(server.err.all[-5:])


@pytest.mark.slow
async def test_workers_have_admin_ports_and_get_signals(sqlite_application: Application, tmp_path: Path) -> None:
    port = free_ports(3)
    with trio.fail_after(TIMEOUT_S):
        async with two_workers(config_of(sqlite_application, tmp_path, admin_port=port)) as server:
            for number, name in enumerate((0, 1, RECORDER)):
                assert (await server.record("admin port open", worker=name))["port"] == port + number
                assert (await Port(port + number).ready())[0] == HTTPStatus.OK
                for _ in range(CLIENTS):  # every worker accepts the console of every process
                    await connect_from(server, f"http://localhost:{port + number}")
            with pytest.raises(Rejected) as refused:
                await connect_from(server, f"http://localhost:{port + 3}")
            assert refused.value.status == HTTPStatus.FORBIDDEN
            assert set(workers_with(server, "connection opened")) == {0, 1}
            server.process.send_signal(signal.SIGHUP)
            for number in range(2):
                renewed = await server.record("settings renewed", worker=number)
                assert renewed["only_after_a_restart"] == []
            for _ in range(2):
                server.process.send_signal(signal.SIGINT)
            assert await server.wait() == 0


@pytest.mark.slow
async def test_early_sighup_is_delivered_once_a_worker_listens(sqlite_application: Application, tmp_path: Path) -> None:
    config = config_of(sqlite_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with running(Server, [*AIRY_TRIO, "--config", str(config)]) as server:
            for name in (RECORDER, 0, 1):
                await pid_of(server, name)  # its interpreter does not handle signals yet
                server.process.send_signal(signal.SIGHUP)
            for number in range(2):
                await server.record("settings renewed", worker=number)
            server.process.send_signal(signal.SIGTERM)
            assert await server.wait() == 0
    assert len(workers_with(server, "worker started")) == 3


@pytest.mark.slow
async def test_interrupt_while_a_worker_starts_prints_no_traceback(
    sqlite_application: Application, tmp_path: Path
) -> None:
    """The first import of the worker's interpreter is a module of the test that waits for the signal."""
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "if '--worker' in sys.orig_argv:\n"
        '    print(\'{"event": "interpreter starts"}\', file=sys.stderr)\n'
        "    signal.pause()\n"
    )
    command = [*AIRY_TRIO, "--config", str(config_of(sqlite_application, tmp_path))]
    environ = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    with trio.fail_after(TIMEOUT_S):
        async with running(Server, command, environ=environ) as server:
            await server.record("interpreter starts")
            server.process.send_signal(signal.SIGINT)
            assert await server.wait() == 0
    assert [line for line in server.err.all if not json_object(line)] == []


@pytest.mark.slow
async def test_port_in_use_is_reported_once(sqlite_application: Application, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        ended = await run("--config", str(config_of(sqlite_application, tmp_path, port=taken.getsockname()[1])))
    assert ended.code == 1
    assert "listener: cannot listen on" in ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.slow
async def test_failed_first_start_ends_the_command(sqlite_application: Application, tmp_path: Path) -> None:
    port = free_ports(3)
    with socket.create_server((HOST, port + 1)):
        ended = await run("--config", str(config_of(sqlite_application, tmp_path, admin_port=port)))
    assert ended.code == 1
    assert f"airy-trio: admin: cannot listen on 127.0.0.1:{port + 1}" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
async def test_command_ends_if_no_worker_listens_or_starts(sqlite_application: Application, tmp_path: Path) -> None:
    config = config_of(sqlite_application, tmp_path)
    with trio.fail_after(2 * TIMEOUT_S):  # each worker is started up to six times, with growing pauses
        async with two_workers(config) as server:
            config.unlink()
            for number in range(2):
                os.kill(await pid_of(server, number), signal.SIGKILL)
            assert await server.process.wait() == 2, "the exit code of a settings error"
            await server.err.end()
    ends = workers_with(server, "worker exited; restarting")
    assert max(ends.count(0), ends.count(1)) == FAILURES_MAX


def interpreter(folder: Path) -> Path:
    """Return an interpreter with our packages whose program file can be removed."""
    (folder / "bin").mkdir()
    own = folder / "bin" / "python"
    own.symlink_to(PROGRAM)
    for name in ("pyvenv.cfg", "lib"):
        (folder / name).symlink_to(Path(sys.prefix, name))
    return own


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
async def test_refused_restart_is_retried(sqlite_application: Application, tmp_path: Path) -> None:
    python = interpreter(tmp_path)
    command = [str(python), "-m", "airy_trio", "--config", str(config_of(sqlite_application, tmp_path))]
    with trio.fail_after(TIMEOUT_S):
        async with running(Server, command) as server:
            server.port = (await server.record("all workers listen"))["port"]
            python.unlink()
            os.kill(await pid_of(server, 0), signal.SIGKILL)
            refused = await server.record("worker process could not be started", worker=0)
            assert refused["reason"] == "No such file or directory"
            async with listening(server) as client:
                sqlite_application.tag("meanwhile")
                await client.next()
                before = len(server.err.all)
                python.symlink_to(PROGRAM)
                await later(server, "all workers listen", before)
                sqlite_application.tag("after")
                await client.next()
            assert await server.terminate() == 0
    assert len(workers_with(server, "worker started")) == 4


@pytest.mark.slow
async def test_refused_first_start_is_one_line(sqlite_application: Application, tmp_path: Path) -> None:
    python = interpreter(tmp_path)
    code = "import os, sys; os.unlink(sys.executable); from airy_trio.__main__ import main; main()"
    command = [str(python), "-c", code, "--config", str(config_of(sqlite_application, tmp_path))]
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, command) as program:
            assert await program.wait() == 1
    printed = [line for line in program.err.all if not json_object(line)]
    assert printed == [f"airy-trio: worker {RECORDER}: cannot start the process: No such file or directory"]


class Failing(Workers):
    """The recorder process started once and cannot start again; both workers serve."""

    def __init__(self) -> None:
        settings = '[database]\nurl = "sqlite:///a.db"\n[listener]\nport = 0\nworkers = 2\n'
        super().__init__(parse(settings, {}), Path("a.toml"), 8080)
        self._listening = {0, 1}
        self.runs = 0

    async def _run_once(self, number: int) -> tuple[bool, int, str]:
        await trio.lowlevel.checkpoint()
        self.runs += 1
        return self.runs == 1, number, ""


@pytest.mark.slow
async def test_failing_worker_does_not_end_the_others(autojump_clock: MockClock) -> None:
    failing = Failing()
    with trio.move_on_after(24 * 3600):
        await failing._live(2)  # noqa: SLF001 - only its loop, without processes
    assert failing.runs > 2000


def test_worker_option_has_four_numbers() -> None:
    accept_command("airy-trio --config a.toml --worker 3 4 8080 5")
    for values in ("", "1", "1 2 3", "a b c d", "1:2:3:4"):
        with pytest.raises(click.UsageError):
            accept_command(f"airy-trio --config a.toml --worker {values}")


def file_with(port: int, workers: int) -> Settings:
    listener = f"[listener]\nport = {port}\nworkers = {workers}\n"
    return parse(f'[database]\nurl = "sqlite:///a.db"\nmigrate = true\n{listener}', {})


def test_settings_of_a_worker() -> None:
    file = file_with(port=0, workers=4)
    worker, recorder = (Worker(number, workers=4, port=7000, descriptor=5).settings(file) for number in (3, 4))
    assert (worker.listener.port, recorder.listener.port) == (7000, 7000)
    assert (worker.database.migrate, recorder.database.migrate) == (False, True), "the recorder starts first"
    assert (worker.log, recorder.log.tail_events) == (file.log, 1)
    assert (worker.admin, recorder.admin) == (file.admin, file.admin), "it has the ports of all processes"


@pytest.mark.parametrize("file", [file_with(0, 1), file_with(8080, 3), file_with(7000, 8)])
def test_restarted_worker_keeps_port_and_number_of_workers(file: Settings) -> None:
    for number in range(3):
        worker = Worker(number, workers=2, port=7000, descriptor=5)
        started = worker.settings(file)
        assert (started.listener.port, started.listener.workers) == (7000, 2)
        assert started.database.migrate == (number == started.listener.recorder)
        assert list(not_renewed(started, worker.reread(file))) == ["listener"], "the file differs"
        assert list(not_renewed(started, worker.reread(file_with(0, 2)))) == []


def test_admin_port_of_each_worker() -> None:
    assert list(AdminOptions(port=8081).ports(4)) == [8081, 8082, 8083, 8084]
    assert list(AdminOptions(port=0).ports(4)) == []
