"""Cookies of a real browser: a page sets one, and the upgrade request of its WebSocket has the token."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Literal

import pytest
import trio

from airy_trio.admin.server import Answer, PageRequest, Pages
from tests.admin.serving import Port
from tests.admin.serving import serving as serving_site
from tests.application import Application
from tests.auth.signing import SECRET, issuer
from tests.console.browser import browsing
from tests.processes import Server, server

TIMEOUT_S = 50.0
HOST = "127.0.0.1"
TOKEN = "s3cret-of-ann"
PAGE = """<!doctype html>
<title>a page with a session</title>
<script>
%s
window.received = [];
const socket = new WebSocket("%s", ["v12.stomp"]);
socket.onopen = () => socket.send("CONNECT\\naccept-version:1.2\\nhost:x\\n\\n\\0");
socket.onmessage = ({ data }) => {
  window.received.push(data);
  if (data.startsWith("CONNECTED"))
    socket.send("SUBSCRIBE\\nid:0\\ndestination:/events\\nreplay:all\\n\\n\\0");
};
socket.onclose = ({ code }) => { window.code = code; };
</script>
"""
MODES = {
    "tokens": (f'mode = "tokens"\ntokens = {{ ann = "{TOKEN}" }}', TOKEN),
    "jwt": (f'mode = "jwt"\njwt_key = "{SECRET}"\njwt_algorithms = ["HS256"]', issuer("HS256").token(sub="ann")),
}
How = Literal["header", "script", "not at all"]


def site(urls: Sequence[str], token: str, how: How) -> Pages:
    """Serve a page that connects to one of ``urls``; ``how``: the way in which its browser gets the token."""

    def page(request: PageRequest) -> Answer:
        script = f"window.cookies = {len(SimpleCookie(request.headers.get('cookie', '')))};"
        if how == "script":
            script = f'document.cookie = "airy={token}; path=/; samesite=strict";'
        headers = {"content-type": "text/html"}
        if how == "header":
            headers["set-cookie"] = f"airy={token}; HttpOnly; Path=/; SameSite=strict"
        return Answer(HTTPStatus.OK, (PAGE % (script, urls[0])).encode(), headers)

    return Pages({"/": page})


@asynccontextmanager
async def serving_page(
    application: Application, folder: Path, mode: str, how: How
) -> AsyncIterator[tuple[Server, str]]:
    """Run a server that accepts a cookie from one origin; yield it and the origin."""
    auth, token = MODES[mode]
    urls: list[str] = []
    async with serving_site(site(urls, token, how)) as page, serving_origin(application, folder, auth, page) as serving:
        urls.append(serving.url)
        yield serving, f"http://{HOST}:{page.number}/"


@asynccontextmanager
async def serving_origin(application: Application, folder: Path, auth: str, page: Port) -> AsyncIterator[Server]:
    """Run a server for the pages of one origin."""
    application.migrate()
    config = folder / "airy-trio.toml"
    config.write_text(
        f'[database]\nurl = "{application.url}"\n[listener]\nport = 0\nallowed_origins = ["http://{HOST}:{page.number}"]\n'
        f'[auth]\n{auth}\ncookie = "airy"\n[admin]\nport = 0\n[logging]\nformat = "json"\n'
    )
    async with server(config) as serving:
        yield serving


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["header", "script"])
async def test_cookie_of_a_page_authenticates_its_websocket(
    sqlite_application: Application, tmp_path: Path, mode: str, how: How
) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with serving_page(sqlite_application, tmp_path, mode, how) as (serving, page):
            sqlite_application.tag("t1")
            async with browsing() as tab:
                await tab.open(page)
                await tab.until("window.received.some((one) => one.startsWith('MESSAGE') && one.includes('\"t1\"'))")
            assert (await serving.record("connection closed"))["user"] == "ann"
        assert MODES[mode][1] not in "\n".join(serving.err.all)


@pytest.mark.parametrize("mode", MODES)
async def test_page_without_a_cookie_is_rejected(sqlite_application: Application, tmp_path: Path, mode: str) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with serving_page(sqlite_application, tmp_path, mode, "not at all") as (_, page), browsing() as tab:
            await tab.open(page)
            await tab.until("window.code !== undefined")
            assert await tab.evaluate("window.code") == 4401
            assert "message:401-unauthorized" in "\n".join(await tab.evaluate("window.received"))


async def test_page_of_another_origin_is_rejected_despite_the_cookie(
    sqlite_application: Application, tmp_path: Path
) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with (
            serving_page(sqlite_application, tmp_path, "tokens", "header") as (serving, page),
            serving_site(site([serving.url], "", "not at all")) as elsewhere,
            browsing() as tab,
        ):
            await tab.open(page)
            await tab.until("window.received.length > 0")
            await tab.open(f"http://{HOST}:{elsewhere.number}/")  # cookies ignore ports, so its requests have it too
            await tab.until("window.code !== undefined")
            assert await tab.evaluate("[window.code, window.received.length, window.cookies]") == [1006, 0, 1]
            refused = await serving.record("connection closed", disconnect="refused")
            assert str(refused["refused"]).startswith("403")
