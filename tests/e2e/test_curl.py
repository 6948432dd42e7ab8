"""``curl`` as a client: it prints events as they arrive, and resumes with one header."""

import shutil
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.application import Application
from tests.event_stream import Parser, StreamEvent
from tests.processes import Program, Server, running, server

TIMEOUT_S: Final = 40.0


def configured(application: Application, folder: Path) -> Path:
    application.migrate()
    config = folder / "airy-trio.toml"
    config.write_text(
        f'[database]\nurl = "{application.url}"\n[listener]\nport = 0\n[admin]\nport = 0\n[logging]\nformat = "json"\n'
        '[auth]\nmode = "tokens"\ntokens = { ann = "s3cret" }\n'
    )
    return config


async def events(curl: Program, count: int) -> list[StreamEvent]:
    """Return the first events that a running curl prints."""
    parser, found, number = Parser(), list[StreamEvent](), 0
    while len(found) < count:
        line = await curl.out.line(number)
        assert line is not None, (found, curl.err.all)
        found += parser.feed(f"{line}\n".encode())
        number += 1
    return found


def command(serving: Server, *options: str) -> list[str]:
    return ["curl", "-sSN", *options, f"http://127.0.0.1:{serving.port}/events"]


async def test_curl_resumes_with_last_event_id(sqlite_application: Application, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    credentials = ("-H", "Authorization: Bearer s3cret")
    with trio.fail_after(TIMEOUT_S):
        async with server(configured(sqlite_application, tmp_path)) as serving:
            async with running(Program, command(serving, *credentials)) as curl:
                await events(curl, 1)
                for number in range(3):
                    sqlite_application.tag(f"t{number}")
                subscribed, *received = await events(curl, 4)
            assert subscribed.type == "subscribed"
            assert [one.json["payload"]["id"] for one in received] == ["t0", "t1", "t2"]
            options = *credentials, "-H", f"Last-Event-ID: {received[0].id}"
            async with running(Program, command(serving, *options)) as curl:
                subscribed, *again = await events(curl, 3)
                assert (subscribed.json["resume"], again) == ("resumed", received[1:])
                serving.process.terminate()
                assert (await events(curl, 4))[-1].json["token"] == "503-shutting-down"
                assert await curl.wait() == 0


async def test_curl_shows_why_it_is_refused(sqlite_application: Application, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with trio.fail_after(TIMEOUT_S):
        async with (
            server(configured(sqlite_application, tmp_path)) as serving,
            running(Program, command(serving, "--fail-with-body")) as curl,
        ):
            assert await curl.wait() == 22
            assert curl.out.all == ["401-unauthorized: The credentials were not accepted."]
