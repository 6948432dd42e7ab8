"""Example programs that resume: nothing is lost and nothing is repeated."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.application import Application
from tests.clients.client_processes import FOLDER as CLIENTS
from tests.clients.client_processes import SMALL_WEBSOCKET, missing
from tests.docs.pages import FOLDER, parts, steps
from tests.e2e.route import configure
from tests.processes import Program, running, server

TIMEOUT_S = 40.0
COUNT = 20
GLOBAL_WEBSOCKET = "import WebSocket from 'ws';\nglobalThis.WebSocket ??= WebSocket;\n"
"""Browsers have a global WebSocket; older versions of Node.js do not."""
QUIET = f"""
{SMALL_WEBSOCKET}
let subscribed = 0;
WebSocket.prototype.onsubscribe = function (frame) {{
  subscribed += 1;
  this.receive('RECEIPT\\nreceipt-id:begin\\nposition:abcdef-7\\nresume:live\\n\\n\\0');
  setTimeout(() => {{ if (subscribed === 1) this.onclose({{}}); else process.exit(); }});
  if (subscribed === 2) console.log(/last-event-id:.*/.exec(frame)?.[0]);
}};
"""
"""A WebSocket whose first connection is lost before any event."""


def program(page: str, name: str) -> str:
    """Return a program from a page, unchanged."""
    [step] = [step for step in steps((FOLDER / page).read_text()) if step.words == name]
    return step.text


async def ids(inbox: Program, count: int) -> list[str]:
    with trio.fail_after(TIMEOUT_S):
        await inbox.out.line(count - 1)
    events = [json.loads(line) for line in inbox.out.all]
    return [event["payload"]["id"] if event else "reset" for event in events]


async def test_page_that_has_received_nothing_resumes_too(tmp_path: Path) -> None:
    if reason := missing("inbox.mjs"):
        pytest.skip(reason)
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "websocket.mjs").write_text(QUIET)
    (tmp_path / "inbox.mjs").write_text(program("how-to/resume.md", "inbox.mjs").replace("2000", "1"))
    node = [shutil.which("node") or "", "--import", "./websocket.mjs", "inbox.mjs"]
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, node, folder=tmp_path) as inbox:
            assert await inbox.wait() == 0
    assert inbox.out.all == ["last-event-id:abcdef-7"]


@pytest.mark.slow
async def test_the_few_lines_get_everything_once_across_a_crash(
    sqlite_application: Application, tmp_path: Path
) -> None:
    if reason := missing("inbox.mjs"):
        pytest.skip(reason)
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "websocket.mjs").write_text(GLOBAL_WEBSOCKET)
    config = configure(sqlite_application, tmp_path)
    expected = [f"t{number}" for number in range(COUNT)]
    node = [shutil.which("node") or "", "--import", "./websocket.mjs", "inbox.mjs"]
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as first:
            text = program("how-to/resume.md", "inbox.mjs").replace(
                "ws://localhost:8080", f"ws://127.0.0.1:{first.port}"
            )
            (tmp_path / "inbox.mjs").write_text(text)
            async with running(Program, node, folder=tmp_path) as inbox:
                for id_ in expected[:5]:
                    sqlite_application.tag(id_)
                assert await ids(inbox, 5) == expected[:5]
                await first.kill()
                for id_ in expected[5:15]:
                    sqlite_application.tag(id_)
                config.write_text(config.read_text().replace("port = 0", f"port = {first.port}", 1))
                async with server(config):
                    assert await ids(inbox, 15) == expected[:15]
                    for id_ in expected[15:]:
                        sqlite_application.tag(id_)
                    assert await ids(inbox, COUNT) == expected
                    # The end of the page: a position of another log.
                    [reset] = parts("how-to/resume.md", "js")
                    text = text.replace("let position;", "let position = 'zzzzzz-1';")
                    (tmp_path / "reset.mjs").write_text(f"{text}const reload = () => console.log('null');\n{reset}")
                    async with running(Program, [*node[:-1], "reset.mjs"], folder=tmp_path) as late:
                        assert await ids(late, COUNT + 1) == ["reset", *expected]


@pytest.mark.slow
async def test_python_service_gets_everything_once_across_a_crash(
    sqlite_application: Application, tmp_path: Path
) -> None:
    config = configure(sqlite_application, tmp_path)
    (tmp_path / "follow.py").write_text(program("how-to/event-streams.md", "follow.py"))
    expected = ["reset", *(f"t{number}" for number in range(10))]
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as first:
            url = f"http://127.0.0.1:{first.port}/events?replay=all&last-event-id=zzzzzz-1"  # of another log
            async with running(Program, [sys.executable, "follow.py", url], folder=tmp_path) as service:
                for id_ in expected[1:6]:
                    sqlite_application.tag(id_)
                assert await ids(service, 6) == expected[:6]
                await first.kill()
                for id_ in expected[6:]:
                    sqlite_application.tag(id_)
                config.write_text(config.read_text().replace("port = 0", f"port = {first.port}", 1))
                async with server(config) as second:
                    assert await ids(service, 11) == expected
                    assert await second.terminate() == 0


async def test_python_service_survives_a_server_outage_and_ends_when_refused(tmp_path: Path) -> None:
    answers = [
        b"503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        b'200 OK\r\nContent-Type: text/event-stream\r\n\r\nid: a-1\ndata: {"payload":{"id":"t0"}}\n\nid: \xc3',  # cut
        b"502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        b"403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    ]

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 " + answers.pop(0))
        await stream.aclose()

    (tmp_path / "follow.py").write_text(program("how-to/event-streams.md", "follow.py"))
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/events"
            async with running(Program, [sys.executable, "follow.py", url], folder=tmp_path) as service:
                assert await service.wait() == 1
                assert (service.out.all, answers) == (['{"payload": {"id": "t0"}}'], [])
                assert "403" in service.err.all[-1]
            nursery.cancel_scope.cancel()
