"""``airy-trio health``: of servers that are alive, not ready, absent, or another program."""

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from attrs import evolve

from airy_trio import health
from airy_trio.database import sqlite_path
from airy_trio.settings import Settings
from tests.admin.serving import admin, free_port, serving_all
from tests.application import Application
from tests.command_line import CommandLine
from tests.processes import run


async def faults_of(settings: Settings, *, ready: bool) -> list[str]:
    return await trio.to_thread.run_sync(lambda: [*health.faults(settings, ready=ready)])


async def test_running_server_has_no_faults(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    async with serving_all(settings) as (_, port):
        await port.until_ready()
        assert await faults_of(settings, ready=False) == []
        assert await faults_of(settings, ready=True) == []


@pytest.mark.slow
async def test_command_of_a_ready_server_prints_one_word(sqlite_application: Application, tmp_path: Path) -> None:
    text = admin(free_port())
    config = tmp_path / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "{sqlite_application.url}"\n{text}')
    async with serving_all(sqlite_application.migrate(text)) as (_, port):
        await port.until_ready()
        for words, word in (((), "alive"), (("--ready",), "ready")):
            ended = await run("health", "--config", str(config), *words)
            assert (ended.code, ended.out, ended.err) == (0, f"{word}\n", "")


async def test_server_that_is_not_ready_is_alive(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    locking = sqlite3.connect(sqlite_path(sqlite_application.url), isolation_level=None)
    with closing(locking):
        async with serving_all(settings) as (_, port):
            await port.until_ready()
            locking.execute("begin exclusive")
            await port.until_not_ready("feed", "locked")
            assert await faults_of(settings, ready=False) == []
            [feed] = [line for line in await faults_of(settings, ready=True) if line.startswith("feed")]
            assert feed.startswith("feed is not ready: recording is interrupted: ")
            locking.execute("rollback")


async def test_token_of_the_settings_is_presented(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port(), f'token = "{"t" * 16}"\n'))
    other = evolve(settings, admin=evolve(settings.admin, token="u" * 16))
    path = "/api/connections"

    def ask(from_: Settings) -> list[health.Answer]:
        return [answer for _, answer in health.answers(from_, path, ("connections",), 1)]

    async with serving_all(settings):
        [answer] = await trio.to_thread.run_sync(ask, settings)
        assert isinstance(answer, dict)
        [refused] = await trio.to_thread.run_sync(ask, other)
        assert refused == (
            f"the admin port 127.0.0.1:{settings.admin.port} has another token; "
            "the server was started with other settings"
        )


def test_each_process_that_does_not_answer_is_named(sqlite_application: Application) -> None:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))  # nothing listens there
        port = bound.getsockname()[1]
        settings = sqlite_application.settings(f"[listener]\nworkers = 2\nport = 0\n[admin]\nport = {port}\n")
        found = [*health.faults(settings, ready=False)]
    assert found[0] == f"worker 0: no server answers at the admin port 127.0.0.1:{port}; it is not running here"
    assert [line.partition(": ")[0] for line in found] == ["worker 0", "worker 1", "recorder"]


def test_command_prints_one_word_or_faults(sqlite_application: Application, command_line: CommandLine) -> None:
    config = sqlite_path(sqlite_application.url).with_name("airy-trio.toml")
    config.write_text(f'[database]\nurl = "{sqlite_application.url}"\n[admin]\nport = 0\n')
    ended = command_line("health", "--config", str(config))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "airy-trio: admin.port is 0, so the server has no admin port\n"
