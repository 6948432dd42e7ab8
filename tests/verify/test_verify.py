"""``airy-trio verify`` as somebody runs it: beside a server, with wrong feeds, killed, interrupted."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from airy_trio.database import SQLITE, sqlite_path
from tests.application import Application
from tests.command_line import CommandLine
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
    """The scratch places that there are."""
    if application.dialect == SQLITE:
        return [path.name for path in sqlite_path(application.url).parent.glob("*.airy-trio-verify-*")]
    return str(application.scalar(SCHEMAS) or "").split()


def recording(application: Application) -> bool:
    """Whether a scratch place has a server that records."""
    if application.dialect == SQLITE:
        folder = sqlite_path(application.url).parent
        return any(folder.glob("*.airy-trio-verify-*/app.db.airy-trio.lock"))
    (place,) = left(application)
    there = application.scalar(f"select to_regclass('{place}.event_log') is not null")
    return bool(there and application.scalar(f"select count(*) from {place}.event_log"))


async def until(what: Callable[[Application], object], application: Application) -> None:
    while not await trio.to_thread.run_sync(what, application):
        pass


def verifying(config: Path, seconds: int = SECONDS, command: Sequence[str] = AIRY_TRIO) -> list[str]:
    return [*command, "verify", "--config", str(config), "--seconds", str(seconds)]


async def verified(config: Path, seconds: int = SECONDS, command: Sequence[str] = AIRY_TRIO) -> Finished:
    with trio.fail_after(TIMEOUT_S):
        ended = await trio.run_process(
            verifying(config, seconds, command), check=False, capture_stdout=True, capture_stderr=True, cwd=ROOT
        )
    return Finished(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


async def test_nothing_is_lost_and_a_running_server_sees_nothing_of_it(
    any_application: Application, tmp_path: Path
) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as client:
            ended = await verified(config)
            assert (ended.code, ended.err) == (0, "")
            any_application.tag()
            assert (await client.next()).offset == 1
            assert any_application.scalar(f"select count(*) from {any_application.log_table('change_log')}") == 1
    told = CERTIFICATE.fullmatch(ended.out)
    assert told is not None, ended.out
    changes, transactions, _, received, *faults = told.groups()
    assert int(changes) >= int(transactions) > 10
    assert int(received) > 10
    assert faults == ["0", "0", "0"]
    torments = ["rolled back", "savepoints rolled back", "connections cut", "left open for long"]
    assert [word for word in torments if word not in told[3]] == []
    assert left(any_application) == []


@pytest.mark.slow
async def test_who_records_is_cut_off_as_well(postgres_application: Application, tmp_path: Path) -> None:
    ended = await verified(configure(postgres_application, tmp_path), seconds=4)
    assert (ended.code, ended.err) == (0, "")
    assert "recorders cut" in ended.out


async def test_a_feed_that_goes_by_seq_is_found_out(postgres_application: Application, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.drill.wrong_server")
    ended = await verified(configure(postgres_application, tmp_path), command=command)
    assert ended.code == 1
    assert int(re.findall(r"lost +(\d+)", ended.out)[0]) >= 20  # of the transaction that stayed open alone
    assert "airy-trio: lost: " in ended.err
    assert left(postgres_application) == []


async def test_a_feed_that_forgets_is_found_out(sqlite_application: Application, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.verify.wrong_feed")
    ended = await verified(configure(sqlite_application, tmp_path), command=command)
    assert ended.code == 1
    assert int(re.findall(r"lost +(\d+)", ended.out)[0]) > 0
    assert left(sqlite_application) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_a_signal_leaves_nothing(number: signal.Signals, any_application: Application, tmp_path: Path) -> None:
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


async def test_a_signal_while_it_prepares_leaves_nothing(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, verifying(config, 30)) as program:
            await until(left, any_application)
            program.process.send_signal(signal.SIGINT)
            assert await program.wait() in (1, 128 + signal.SIGINT)
    assert "Traceback" not in "".join(program.err.all)
    assert left(any_application) == []


async def test_what_a_killed_run_leaves_the_next_one_removes(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, verifying(config, 30)) as program:
            await until(left, any_application)
            beside = await verified(config)  # which leaves alone what is in use
            assert (beside.code, beside.err) == (0, "")
            killed = left(any_application)
            await program.kill()
        assert left(any_application) == killed
        assert len(killed) == 1
        ended = await verified(config)
    assert (ended.code, ended.err) == (0, "")
    assert left(any_application) == []


def test_without_the_right_to_make_a_schema_it_says_which(
    postgres: Postgres, tmp_path: Path, command_line: CommandLine
) -> None:
    config = tmp_path / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "{postgres.password_url("postgres")}"\n')
    ended = command_line("verify", "--config", str(config))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        f'airy-trio: database.url: role "{PASSWORD_ROLE}" may not make the scratch schema that verify works in; '
        f'as the owner: GRANT CREATE ON DATABASE "postgres" TO "{PASSWORD_ROLE}"\n'
    )


def test_a_file_that_is_not_there_is_told(tmp_path: Path, command_line: CommandLine) -> None:
    config = tmp_path / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "sqlite:///{tmp_path}/absent.db"\n')
    ended = command_line("verify", "--config", str(config))
    assert (ended.code, ended.out) == (1, "")
    assert f"the SQLite file {tmp_path}/absent.db does not exist" in ended.err
    assert os.listdir(tmp_path) == ["airy-trio.toml"]  # noqa: PTH208 - the names are all that is compared
