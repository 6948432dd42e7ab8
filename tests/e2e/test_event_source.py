"""A page without a library, in a real browser: its ``EventSource`` resumes by itself, or gives up for good."""

import json
import time
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

import pytest
import trio

from airy_trio.admin.server import Answer, PageRequest, Pages
from tests.admin.serving import serving as serving_site
from tests.application import Application
from tests.auth.signing import SECRET, issuer
from tests.clients.page import network
from tests.console.browser import Tab, browsing
from tests.processes import Server, server

TIMEOUT_S: Final = 80.0
HOST: Final = "127.0.0.1"
CONNECTING, OPEN, CLOSED = 0, 1, 2
JWT: Final = (
    f'[auth]\nmode = "jwt"\njwt_key = "{SECRET}"\njwt_algorithms = ["HS256"]\njwt_leeway_s = 0\ncookie = "airy"\n'
)
SIGNER: Final = issuer("HS256")
EXPIRES_IN_S: Final = 3
PAGE: Final = """<!doctype html>
<title>a page without a library</title>
<script>
window.seen = [];
window.started = [];
window.ended = [];
window.errors = 0;
window.follow = (url) => {
  window.source = new EventSource(url, { withCredentials: true });
  source.onmessage = ({ lastEventId, data }) => seen.push([lastEventId, data]);
  source.addEventListener("subscribed", ({ data }) => started.push(JSON.parse(data)));
  source.addEventListener("disconnect", ({ data }) => ended.push(JSON.parse(data).token));
  source.onerror = () => { errors += 1; };
};
</script>
"""


def site() -> Pages:
    def page(_request: PageRequest) -> Answer:
        return Answer(HTTPStatus.OK, PAGE.encode(), {"content-type": "text/html"})

    return Pages({"/": page})


def configured(application: Application, folder: Path, origin: int, more: str = "") -> Path:
    """Settings of a server for the pages of one origin."""
    application.migrate()
    config = folder / "airy-trio.toml"
    config.write_text(
        f'[database]\nurl = "{application.url}"\n[listener]\nport = 0\nallowed_origins = ["http://{HOST}:{origin}"]\n'
        f'[admin]\nport = 0\n[logging]\nformat = "json"\n{more}'
    )
    return config


async def follow(tab: Tab, port: int, path: str = "/events") -> None:
    await tab.evaluate(f'follow("http://{HOST}:{port}{path}")')


async def assert_each_once_in_order(tab: Tab, count: int) -> None:
    """Check that the page has every tag, each once, in order, at positions without gaps."""
    seen = await tab.evaluate("seen")
    assert [json.loads(body)["payload"]["id"] for _, body in seen] == [f"t{number}" for number in range(count)]
    assert [int(id_.rpartition("-")[2]) for id_, _ in seen] == list(range(1, count + 1))


async def test_page_gets_every_event_once_across_restart_and_lost_network(
    sqlite_application: Application, tmp_path: Path
) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with network() as link, serving_site(site()) as page, browsing() as tab:
            config = configured(sqlite_application, tmp_path, page.number)
            async with server(config) as first:
                link.target = first.port
                await tab.open(f"http://{HOST}:{page.number}/")
                await follow(tab, link.port, "/events?replay=none")
                await tab.until("started.length === 1")
                await first.kill()  # before any event: `subscribed` has set a position
            sqlite_application.tags(range(5))  # while there is no server
            async with server(config) as second:
                link.target = second.port
                await tab.until("seen.length === 5")
                sqlite_application.tags(range(5, 10))
                await tab.until("seen.length === 10")
                await link.cut()
                await tab.until(f"source.readyState === {CONNECTING}")
                sqlite_application.tags(range(10, 15))  # while there is no network
                await tab.until("errors >= 3")
                link.mend()
                await tab.until("seen.length === 15")
                assert await second.terminate() == 0
                await tab.until('ended.includes("503-shutting-down")')
            sqlite_application.tags(range(15, 20))
            async with server(config) as third:
                link.target = third.port
                await tab.until("seen.length === 20")
                sqlite_application.tags(range(20, 25))
                await tab.until("seen.length === 25")
            await assert_each_once_in_order(tab, 25)
            assert [one["resume"] for one in await tab.evaluate("started")] == ["live"] + ["resumed"] * 3


@pytest.mark.parametrize("renewed", [True, False])
async def test_page_resumes_with_a_new_token_and_gives_up_without(
    renewed: bool, sqlite_application: Application, tmp_path: Path
) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with serving_site(site()) as page, browsing() as tab:
            config = configured(sqlite_application, tmp_path, page.number, JWT)
            async with server(config) as serving:
                await tab.open(f"http://{HOST}:{page.number}/")
                await set_token(tab, int(time.time()) + EXPIRES_IN_S)
                await follow(tab, serving.port)
                await tab.until("started.length === 1")
                sqlite_application.tag("t0")
                await tab.until("seen.length === 1")
                if renewed:
                    await set_token(tab, int(time.time()) + 3600)
                await tab.until("ended.length === 1")
                assert await tab.evaluate("ended") == ["401-token-expired"]
                sqlite_application.tag("t1")
                if renewed:
                    await tab.until("seen.length === 2")
                else:
                    await tab.until(f"source.readyState === {CLOSED}")
            await assert_each_once_in_order(tab, 2 if renewed else 1)


async def set_token(tab: Tab, expires_at: int) -> None:
    """Set the cookie of the page. Cookies ignore ports."""
    await tab.evaluate(f'document.cookie = "airy={SIGNER.token(exp=expires_at)}; path=/; samesite=strict"')


async def test_page_gives_up_what_is_refused_for_good(sqlite_application: Application, tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with serving_site(site()) as page, serving_site(site()) as elsewhere, browsing() as tab:
            config = configured(sqlite_application, tmp_path, page.number)
            async with server(config) as serving:
                await tab.open(f"http://{HOST}:{page.number}/")
                await follow(tab, serving.port, "/events/nonsense")
                await tab.until(f"source.readyState === {CLOSED}")
                await refused(serving, "404-unknown-destination")
                await tab.open(f"http://{HOST}:{elsewhere.number}/")
                await follow(tab, serving.port)
                await tab.until(f"source.readyState === {CLOSED}")
                assert await tab.evaluate("started") == []
                assert str((await serving.record("connection closed", disconnect="refused"))["refused"])[:3] == "403"


async def refused(serving: Server, token: str) -> None:
    assert (await serving.record("connection closed", error=token))["disconnect"] == "not found"


RETURNS: Final = {
    204: "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    403: "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    503: "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("status", RETURNS)
async def test_browser_reconnects_after_a_stream_but_not_after_a_status(status: int) -> None:
    """Check what the wire contract assumes about browsers (lines 30 and 32), with canned answers."""
    requests: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += await stream.receive_some()
        requests.append(request)
        shared = "Access-Control-Allow-Origin: http://%s\r\nAccess-Control-Allow-Credentials: true\r\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n{shared % origin}\r\n"
        again = RETURNS[status].replace("\r\n\r\n", f"\r\n{shared % origin}\r\n", 1)
        first = f"{head}retry: 50\n\nevent: subscribed\nid: a-1\ndata: {{}}\n\n"
        await stream.send_all((first, f"{head}retry: 50\n\n", again)[min(len(requests), 3) - 1].encode())
        await stream.aclose()

    with trio.fail_after(TIMEOUT_S):
        async with serving_site(site()) as page, browsing() as tab, trio.open_nursery() as nursery:
            origin = f"{HOST}:{page.number}"
            (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host=HOST))
            await tab.open(f"http://{origin}/")
            await follow(tab, listener.socket.getsockname()[1])
            await tab.until(f"source.readyState === {CLOSED}")
            assert len(requests) == 3
            assert [b"\r\nLast-Event-ID: a-1\r\n" in one for one in requests] == [False, True, True]
            assert [one.split()[0] for one in requests] == [b"GET"] * 3  # Last-Event-ID needs no preflight request
            nursery.cancel_scope.cancel()


async def test_page_reads_a_stream_with_a_header_but_images_cannot(
    sqlite_application: Application, tmp_path: Path
) -> None:
    """``fetch`` with Authorization sends a preflight request first. An image requests no events, and is refused."""
    tokens = '[auth]\nmode = "tokens"\ntokens = { ann = "s3cret" }\ncookie = "airy"\n'
    with trio.fail_after(TIMEOUT_S):
        async with serving_site(site()) as page, browsing() as tab:
            config = configured(sqlite_application, tmp_path, page.number, tokens)
            async with server(config) as serving:
                await tab.open(f"http://{HOST}:{page.number}/")
                url = f"http://{HOST}:{serving.port}/events"
                headers = "{ Authorization: 'Bearer s3cret', 'Last-Event-ID': 'abcdef-1' }"
                read = "response.body.getReader().read().then(({ value }) => new TextDecoder().decode(value))"
                found = await tab.evaluate(f'fetch("{url}", {{ headers: {headers} }}).then((response) => {read})')
                assert "event: subscribed" in found
                await serving.record("connection closed", refused="204: This was a preflight request.")
                await tab.evaluate('document.cookie = "airy=s3cret; path=/; samesite=strict"')
                await tab.evaluate(f'new Image().src = "{url}"')
                words = "403: A page reads events with EventSource or fetch."
                await serving.record("connection closed", refused=words)
