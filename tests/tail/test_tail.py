"""``airy-trio tail`` as a process, next to a real server: its output, its start, and its end."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.application import Application, application
from tests.command_line import CommandLine
from tests.e2e.route import configure
from tests.postgres import Postgres
from tests.processes import AIRY_TRIO, Program, Server, run, running, server

TIMEOUT_S = 50.0
LATIN_1 = {"PYTHONIOENCODING": "latin-1"}
EVENT = re.compile(r"\d\d:\d\d:\d\d\.\d{3}  ([a-z0-9]{6}-\d+) +(\S+\.updated) +(.*)")


@asynccontextmanager
async def tailing(config: Path, *arguments: str, environ: dict[str, str] | None = None) -> AsyncIterator[Program]:
    """Run ``airy-trio tail``, and yield once it reads the store."""
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [*AIRY_TRIO, "tail", "--config", str(config), *arguments], environ=environ) as tail:
            first = await tail.err.line(0)
            assert first is not None
            assert first.startswith("airy-trio: reading "), first
            yield tail


@asynccontextmanager
async def serving(config: Path) -> AsyncIterator[Server]:
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as listening:
            yield listening


async def shown(tail: Program, number: int) -> tuple[str, str, str]:
    line = await tail.out.line(number)
    assert line is not None, tail.err.all
    event = EVENT.fullmatch(line)
    assert event is not None, line
    return event[1], event[2], event[3]


async def recorded(config: Path, count: int) -> list[dict[str, object]]:
    """Return the first events of the log, once they are recorded."""
    ended = await run("tail", "--config", str(config), "--json", "--all", "--events", str(count), environ=LATIN_1)
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


async def test_shows_each_event_as_it_happens(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    async with serving(config), tailing(config, environ=LATIN_1) as tail:
        any_application.tag(name="first \N{GRINNING FACE}")
        assert (await shown(tail, 0))[1:] == ("tag.updated", "first \\U0001f600  tag-red")
        any_application.message()
        position, type_, text = await shown(tail, 1)
        assert (position[-2:], type_) == ("-2", "message.updated")
        assert text == "c1  contact: Hello World  (pending)"
        assert await tail.terminate() == 0
    assert "\x1b" not in "".join(tail.out.all)  # no colours in a pipe


async def test_ctrl_c_ends_it_without_output(sqlite_application: Application, tmp_path: Path) -> None:
    config = configure(sqlite_application, tmp_path)
    async with serving(config), tailing(config) as tail:
        tail.process.send_signal(signal.SIGINT)
        assert await tail.wait() == 0
    assert len(tail.err.all) == 1


async def test_json_has_the_exact_event_and_its_position(sqlite_application: Application, tmp_path: Path) -> None:
    config = configure(sqlite_application, tmp_path)
    async with serving(config):
        sqlite_application.message(content='{"text": "a\\u2028b\\n\N{GRINNING FACE}"}')
        (event,) = await recorded(config, 1)
    assert re.fullmatch(r"[a-z0-9]{6}-1", str(event.pop("position")))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(event.pop("recorded_at")))
    assert event["type"] == "message.updated"
    assert event["payload"]["message"]["content"] == {"text": "a\u2028b\n\N{GRINNING FACE}"}  # type: ignore[index]
    assert list(event) == ["type", "payload"]


async def test_truncated_event_is_marked(sqlite_application: Application, tmp_path: Path) -> None:
    config = configure(sqlite_application, tmp_path)
    async with serving(config):
        sqlite_application.message(content=json.dumps({"text": "x" * 70_000}))
        (event,) = await recorded(config, 1)
    assert event["truncated"] is True


async def test_resumes_after_a_position_on_one_destination(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    async with serving(config):
        for number in range(4):
            any_application.tag(f"t{number}", f"tag {number}")
            any_application.message(id=f"m{number}")
        events = await recorded(config, 8)
    since = str(events[2]["position"])
    ended = await run("tail", "--config", str(config), "--since", since, "--events", "2", "/events/tag.updated")
    assert [EVENT.fullmatch(line)[3] for line in ended.out.splitlines()] == [  # type: ignore[index]
        "tag 2  tag-red",
        "tag 3  tag-red",
    ]


async def test_expired_positions_are_reported_as_to_a_client(sqlite_application: Application, tmp_path: Path) -> None:
    config = configure(sqlite_application, tmp_path)
    async with serving(config):
        sqlite_application.tag()
        (event,) = await recorded(config, 1)
    arguments = ("tail", "--config", str(config), "--json", "--events", "1", "--since")
    ended = await run(*arguments, "aaaaaa-7")
    reset, again = (json.loads(line) for line in ended.out.splitlines())
    epoch = str(event["position"]).partition("-")[0]
    assert reset == {"position": f"{epoch}-0", "resume": "reset-epoch"}
    assert again == event
    assert "reset-epoch: the position is not one of this log" in ended.err
    with application(f"sqlite:///{tmp_path}/app.db.airy-trio.db") as log:
        log.execute(
            "insert into airy_trio_event_log select 9, appended_at_ms, type, object, conversation_id, channel_id, "
            "body, truncated, age_ms from airy_trio_event_log",
            "delete from airy_trio_event_log where offset = 1",
            "update airy_trio_log_state set first = 9, last = 9",
        )
    ended = await run(*arguments, f"{epoch}-3")
    assert json.loads(ended.out.splitlines()[0]) == {"position": f"{epoch}-8", "resume": "reset-expired"}
    assert "reset-expired: the events after the position have been trimmed" in ended.err


async def test_closed_pipe_ends_it_quietly(sqlite_application: Application, tmp_path: Path) -> None:
    config = configure(sqlite_application, tmp_path)
    async with serving(config):
        sqlite_application.tag()
        await recorded(config, 1)
        reading, writing = os.pipe()
        os.close(reading)
        command = [*AIRY_TRIO, "tail", "--config", str(config), "--all"]
        with trio.fail_after(TIMEOUT_S):
            ended = await trio.run_process(command, stdout=writing, capture_stderr=True, check=False)
        os.close(writing)
    assert ended.returncode == 0
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


async def test_waits_for_an_unavailable_database(own_postgres: Postgres, tmp_path: Path) -> None:
    with application(own_postgres.url(own_postgres.create_database())) as writing:
        config = configure(writing, tmp_path)
        async with serving(config), tailing(config) as tail:
            writing.tag("before")
            assert (await shown(tail, 0))[0].endswith("-1")
            writing.engine.dispose()
            await trio.to_thread.run_sync(own_postgres.stop)
            away = await tail.err.line(1)
            assert away is not None
            assert away.startswith("airy-trio: event store unavailable; retrying: ")
            await trio.to_thread.run_sync(own_postgres.start)
            assert await tail.err.line(2) == "airy-trio: event store available again"
            writing.tag("after")
            assert (await shown(tail, 1))[0].endswith("-2")
            assert await tail.terminate() == 0
    assert len(tail.err.all) == 3


@pytest.mark.parametrize(
    "more, message",
    [
        ('[log]\nstore = "memory"\n', 'log.store: "memory" is inside the server process and cannot be read'),
        ("", "log.url: the event log {folder}/app.db.airy-trio.db does not exist (the server creates it)"),
    ],
)
def test_missing_store_is_reported(more: str, message: str, tmp_path: Path, command_line: CommandLine) -> None:
    with application(f"sqlite:///{tmp_path}/app.db", create=True) as made:
        config = configure(made, tmp_path, more)
    (tmp_path / "app.db.airy-trio.db").unlink(missing_ok=True)
    ended = command_line("tail", "--config", str(config))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"airy-trio: {message.format(folder=tmp_path)}\n"
    assert not (tmp_path / "app.db.airy-trio.db").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["/events/nothing"], "'/events/nothing' is not a destination"),
        (["--since", "7"], "'7' is not a position, which looks like k7f3q9-1042"),
        (["--since", "aaaaaa-1", "--all"], "--since, --all and --current exclude each other"),
        (["--current"], "--current needs --url"),
        (["--token", "t"], "--token needs --url"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, tmp_path: Path, command_line: CommandLine) -> None:
    config = tmp_path / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "sqlite:///{tmp_path}/app.db"\n')
    ended = command_line("tail", "--config", str(config), *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
