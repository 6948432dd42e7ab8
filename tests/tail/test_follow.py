"""``airy-trio tail --url``: the same lines, but read as a client of a server."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.application import Application
from tests.e2e.route import configure
from tests.processes import Server, run, server

TIMEOUT_S = 50.0
AUTH = '[auth]\nmode = "tokens"\ntokens = { inbox = "s3cret-that-is-long-enough" }\n'


@asynccontextmanager
async def serving(application: Application, folder: Path) -> AsyncIterator[Server]:
    with trio.fail_after(TIMEOUT_S):
        async with server(configure(application, folder, AUTH)) as listening:
            yield listening


async def test_follows_a_server_with_a_token_from_the_environment(
    sqlite_application: Application, tmp_path: Path
) -> None:
    environ = {"AIRY_TRIO_TOKEN": "s3cret-that-is-long-enough"}
    async with serving(sqlite_application, tmp_path) as listening:
        sqlite_application.tag("t1")
        sqlite_application.message()
        sqlite_application.tag("t2")
        arguments = ("tail", "--url", listening.url, "--all", "--events", "2", "/events/tag.updated")
        as_json = await run(*arguments, "--json", environ=environ)
        lines = await run(*arguments, environ=environ)
        current = ("--current", "--events", "1", "--json")
        state = await run("tail", "--url", listening.url, *current, "/events/message.updated", environ=environ)
        rejected = await run(*arguments)
        events = [json.loads(line) for line in as_json.out.splitlines()]
        assert [event["payload"]["id"] for event in events] == ["t1", "t2"]
        assert [event["position"][-2:] for event in events] == ["-1", "-3"]
        assert [line.split()[1] for line in lines.out.splitlines()] == [event["position"] for event in events]
        assert (as_json.code, lines.code) == (0, 0)
        begun, message = map(json.loads, state.out.splitlines())
        assert begun["missing"] == ["message.updated"]  # not in `keep_current`, so older messages are not there
        assert message["position"] <= begun["until"]
        assert rejected.code == 1
        assert rejected.err == "airy-trio: the server refused: 401-unauthorized: The credentials were not accepted.\n"


@pytest.mark.slow
async def test_url_is_checked(tmp_path: Path) -> None:
    wrong = await run("tail", "--url", "http://example.org")
    both = await run("tail", "--url", "ws://example.org", "--config", str(tmp_path / "a.toml"))
    assert (wrong.code, both.code) == (2, 2)
    assert "ws://HOST/PATH" in wrong.err
    assert "exclude each other" in both.err
