"""``airy-trio verify`` as a process: next to a server, with wrong feeds, killed, interrupted."""

import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from airy_trio.database import SQLITE, sqlite_path
from tests.application import Application
from tests.command_line import CommandLine
from tests.docs.pages import parts
from tests.drill.nodes import ROOT
from tests.e2e.route import configure, listening
from tests.postgres import PASSWORD_ROLE, Postgres
from tests.processes import AIRY_TRIO, Finished, Program, running, server

TIMEOUT_S = 55.0
SECONDS = 2
PREFIX = "airy_trio_verify_"
SCHEMAS = f"select string_agg(nspname, ' ') from pg_namespace where nspname like '{PREFIX}%'"
CERTIFICATE = re.compile(
    r"sent        (\d+) changes in (\d+) transactions\n"
    r"meanwhile   (.*)\n"
    r"received    (\d+) events .*\n"
    r"lost        (\d+)\nduplicated  (\d+)\nreordered   (\d+)\n"
    r"latency     p50 [0-9.]+ ms, p99 [0-9.]+ ms, from the COMMIT to the client\n"
)


def left(application: Application) -> list[str]:
    """Return the scratch schemas or folders that exist."""
    if application.dialect == SQLITE:
        return [path.name for path in sqlite_path(application.url).parent.glob("*.airy-trio-verify-*")]
    return str(application.scalar(SCHEMAS) or "").split()


def recording(application: Application) -> bool:
    """Return whether a server is recording in the scratch schema or folder."""
    if application.dialect == SQLITE:
        folder = sqlite_path(application.url).parent
        return any(folder.glob("*.airy-trio-verify-*/app.db.airy-trio.lock"))
    (schema,) = left(application)
    exists = application.scalar(f"select to_regclass('{schema}.event_log') is not null")
    return bool(exists and application.scalar(f"select count(*) from {schema}.event_log"))


async def until(condition: Callable[[Application], object], application: Application) -> None:
    while not await trio.to_thread.run_sync(condition, application):
        pass


def verifying(config: Path, seconds: int = SECONDS, command: Sequence[str] = AIRY_TRIO) -> list[str]:
    """Return the command of the page about operation, with these settings and for this time."""
    text = parts("how-to/operate.md", "sh")[1].replace("60", str(seconds)).replace("prod.toml", str(config))
    return [*command, *shlex.split(text)[1:]]


async def verified(config: Path, seconds: int = SECONDS, command: Sequence[str] = AIRY_TRIO) -> Finished:
    with trio.fail_after(TIMEOUT_S):
        ended = await trio.run_process(
            verifying(config, seconds, command), check=False, capture_stdout=True, capture_stderr=True, cwd=ROOT
        )
    return Finished(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


async def test_nothing_is_lost_and_a_running_server_is_unaffected(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as client:
            ended = await verified(config)
            assert (ended.code, ended.err) == (0, "")
            any_application.tag()
            assert (await client.next()).offset == 1
            assert any_application.scalar(f"select count(*) from {any_application.log_table('change_log')}") == 1
    shown = CERTIFICATE.fullmatch(ended.out)
    assert shown is not None, ended.out
    changes, transactions, _, received, *faults = shown.groups()
    assert int(changes) >= int(transactions) > 10
    assert int(received) > 10
    assert faults == ["0", "0", "0"]
    disturbances = ["rolled back", "savepoints rolled back", "connections terminated", "left open for long"]
    assert [word for word in disturbances if word not in shown[3]] == []
    assert left(any_application) == []


@pytest.mark.slow
async def test_recorder_is_terminated_too(postgres_application: Application, tmp_path: Path) -> None:
    ended = await verified(configure(postgres_application, tmp_path), seconds=4)
    assert (ended.code, ended.err) == (0, "")
    assert "recorders terminated" in ended.out


async def test_loss_by_a_feed_ordered_by_seq_is_detected(postgres_application: Application, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.drill.wrong_server")
    ended = await verified(configure(postgres_application, tmp_path), command=command)
    assert ended.code == 1
    assert int(re.findall(r"lost +(\d+)", ended.out)[0]) >= 20  # objects of the long transaction alone
    assert "airy-trio: lost: " in ended.err
    assert left(postgres_application) == []


async def test_loss_by_a_feed_that_drops_changes_is_detected(sqlite_application: Application, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.verify.wrong_feed")
    ended = await verified(configure(sqlite_application, tmp_path), command=command)
    assert ended.code == 1
    assert int(re.findall(r"lost +(\d+)", ended.out)[0]) > 0
    assert left(sqlite_application) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_signal_leaves_nothing_behind(
    number: signal.Signals, any_application: Application, tmp_path: Path
) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, verifying(config, 30)) as program:
            await until(left, any_application)
            await until(recording, any_application)
            program.process.send_signal(number)
            assert await program.wait() == 1
    assert program.out.all == []
    assert program.err.all == ["airy-trio: interrupted: nothing was proved, and everything was removed"]
    assert left(any_application) == []


async def test_signal_during_preparation_leaves_nothing_behind(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, verifying(config, 30)) as program:
            await until(left, any_application)
            program.process.send_signal(signal.SIGINT)
            assert await program.wait() in (1, 128 + signal.SIGINT)
    assert "Traceback" not in "".join(program.err.all)
    assert left(any_application) == []


async def test_next_run_removes_what_a_killed_run_left(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, verifying(config, 30)) as program:
            await until(left, any_application)
            concurrent = await verified(config)  # must not remove what is in use
            assert (concurrent.code, concurrent.err) == (0, "")
            killed = left(any_application)
            await program.kill()
        assert left(any_application) == killed
        assert len(killed) == 1
        ended = await verified(config)
    assert (ended.code, ended.err) == (0, "")
    assert left(any_application) == []


def test_missing_right_is_reported_with_the_grant(
    postgres: Postgres, tmp_path: Path, command_line: CommandLine
) -> None:
    config = tmp_path / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "{postgres.password_url("postgres")}"\n')
    ended = command_line("verify", "--config", str(config))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        f'airy-trio: database.url: role "{PASSWORD_ROLE}" may not create the scratch schema of verify; '
        f'as the owner: GRANT CREATE ON DATABASE "postgres" TO "{PASSWORD_ROLE}"\n'
    )
