"""How the server ends on a signal: gracefully and with exit code 0, whatever it was doing."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from airy_trio.testing.client import Closed
from tests.application import Application
from tests.e2e.route import HOST, configure, listening
from tests.processes import AIRY_TRIO, Program, json_object, run, running, server

TIMEOUT_S = 40.0
ROOT = Path(__file__).parents[2]


def unlogged(program: Program) -> Sequence[str]:
    """Return what is on stderr besides the log: messages, or a traceback."""
    return [line for line in program.err.all if not json_object(line)]


def logged(program: Program, event: str) -> bool:
    return any(json_object(line).get("event") == event for line in program.err.all)


@pytest.mark.parametrize(
    "number, database",
    [(signal.SIGINT, "sqlite_application"), (signal.SIGTERM, "postgres_application")],
    ids=["SIGINT", "SIGTERM"],
)
async def test_signal_disconnects_clients_and_exits_with_0(
    number: signal.Signals, database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    application: Application = request.getfixturevalue(database)
    with trio.fail_after(TIMEOUT_S):
        async with (
            server(configure(application, tmp_path)) as serving,
            listening(serving) as one,
            listening(serving) as other,
            await trio.open_tcp_stream(HOST, serving.port),  # a connection that sends nothing
        ):
            application.tag()
            assert [(await client.next()).offset for client in (one, other)] == [1, 1]
            serving.process.send_signal(number)
            for client in (one.client, other.client):
                error = await client.receive()
                assert (error.command, error.get("message")) == ("ERROR", "503-shutting-down")
                with pytest.raises(Closed) as closed:
                    await client.receive()
                assert closed.value.code == 1012
            assert await serving.wait() == 0
    assert unlogged(serving) == []
    assert (await serving.record("stopping"))["signal"] == number.name
    assert (await serving.record("stopped"))["events"] == 1


async def test_second_signal_ends_at_once(sqlite_application: Application, tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with server(configure(sqlite_application, tmp_path)) as serving, listening(serving):
            serving.process.terminate()  # the client does not read, so it does not answer either
            await serving.record("stopping")
            serving.process.terminate()
            assert await serving.wait() == 0
    assert not logged(serving, "stopped")
    assert unlogged(serving) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_signal_during_the_start_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    dialled = trio.Event()

    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.aclose()
        dialled.set()

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host=HOST))
            port = listener.socket.getsockname()[1]
            config = tmp_path / "airy-trio.toml"
            config.write_text(
                f'[database]\nurl = "postgresql://airy@{HOST}:{port}/airy"\nconnect_timeout_s = 600\n'
                '[logging]\nformat = "json"\n'
            )
            async with running(Program, [*AIRY_TRIO, "--config", str(config)]) as starting:
                await dialled.wait()
                starting.process.send_signal(number)
                assert await starting.wait() == 0
            nursery.cancel_scope.cancel()
    assert unlogged(starting) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("arguments, code", [(("--config", "f.toml"), 0), (("migrate", "--config", "f.toml"), 128)])
async def test_signal_while_the_program_is_imported(
    number: signal.Signals, arguments: Sequence[str], code: int, tmp_path: Path
) -> None:
    """The first import is a module of the test that sends the signal."""
    (tmp_path / "click.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nraise AssertionError\n")
    environ = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    with trio.fail_after(TIMEOUT_S):
        finished = await run(*arguments, environ=environ)
    assert (finished.code, finished.err) == (code and code + number, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_signal_at_the_end_of_the_program_changes_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """A module of the test, which Python imports first, sends the signal after the command."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit, os\natexit.register(lambda: os.kill(os.getpid(), {int(number)}))\n"
    )
    environ = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    with trio.fail_after(TIMEOUT_S):
        finished = await run("--config", "missing.toml", environ=environ)
    assert (finished.code, finished.err) == (2, "airy-trio: missing.toml: there is no such file\n")
