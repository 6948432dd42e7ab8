"""Real proxies with the files in deploy/: a client receives events through TLS and the proxy.

A proxy that is not installed is not tested, because the project does not need it. Its file is still parsed.
"""

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
import trustme
from attrs import frozen

from airy_trio import app
from airy_trio.testing.client import StompClient
from tests.admin.serving import free_port
from tests.application import Application
from tests.docs.pages import parts
from tests.event_stream import EventStream

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
HOST: Final = "127.0.0.1"
NAME: Final = "chat.example.org"
TIMEOUT_S: Final = 30.0
LEFT_S: Final = 5.0
Dial = Callable[[], Awaitable[trio.abc.Stream]]


@frozen
class Proxy:
    """A proxy's program, its settings, and a function that adapts them to a folder, a port and the server's port.

    The function returns the arguments of the program. ``answers_for_server``: an ``EventSource`` gets a stream from the
    proxy while the server is not available.
    """

    program: str
    text: str
    configure: Callable[[str, Path, int, int], list[str]]
    source: str = "deploy"
    answers_for_server: bool = True


def nginx(text: str, folder: Path, port: int, server: int) -> list[str]:
    text = text.replace("listen 443 ssl", f"listen {HOST}:{port} ssl").replace(f"{HOST}:8080", f"{HOST}:{server}")
    text = text.replace(f"/etc/ssl/{NAME}", str(folder))
    (folder / "site.conf").write_text(text)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {folder}/site.conf;\n}}\n"
    )
    return ["-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def caddy(text: str, folder: Path, port: int, server: int) -> list[str]:
    text = text.replace(f"{HOST}:8080", f"{HOST}:{server}")
    own = "{\n\tadmin off\n\tauto_https disable_redirects\n"
    site = f"{NAME}:{port} {{\n\tbind {HOST}\n\ttls {folder}/fullchain.pem {folder}/privkey.pem\n"
    text = text.replace(f"{NAME} {{\n", site)
    text = text.replace("\n{\n", f"\n{own}", 1) if "\n{\n" in text else f"{own}}}\n{text}"
    (folder / "Caddyfile").write_text(text)
    return ["run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


ORIGIN: Final = "https://app.example.org"
[LOCATIONS] = parts("how-to/tls.md", "nginx")
[CADDYFILE] = parts("how-to/tls.md", "text")
SERVER: Final = f"""server {{
    listen 443 ssl;
    server_name {NAME};
    ssl_certificate     /etc/ssl/{NAME}/fullchain.pem;
    ssl_certificate_key /etc/ssl/{NAME}/privkey.pem;
    {LOCATIONS}
}}"""
PROXIES: Final = (
    Proxy("nginx", (DEPLOY / "nginx.conf").read_text(), nginx),
    Proxy("nginx", SERVER, nginx, source="the page"),
    Proxy("caddy", (DEPLOY / "Caddyfile").read_text(), caddy),
    Proxy("caddy", CADDYFILE, caddy, source="the page", answers_for_server=False),
)
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"


@asynccontextmanager
async def proxied(proxy: Proxy, folder: Path, server: int) -> AsyncIterator[Callable[[], Awaitable[trio.abc.Stream]]]:
    """Run a proxy in front of a server's port; yield a function that opens a stream to it."""
    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    certificate.private_key_pem.write_to_path(folder / "privkey.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(folder / "fullchain.pem", append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    command = [shutil.which(proxy.program, path=PATH) or "", *proxy.configure(proxy.text, folder, port, server)]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, env={"HOME": str(folder), "PATH": PATH}
    )

    async def dial() -> trio.SSLStream[trio.SocketStream]:
        with trio.fail_after(TIMEOUT_S):
            while True:
                assert process.poll() is None, "the proxy has ended"
                try:
                    stream = await trio.open_tcp_stream(HOST, port)
                except OSError:  # it does not listen yet
                    continue
                return trio.SSLStream(stream, trusting, server_hostname=NAME, https_compatible=True)

    try:
        yield dial
    finally:
        process.terminate()
        with trio.move_on_after(TIMEOUT_S, shield=True):
            await process.wait()


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: f"{proxy.program} of {proxy.source}")
async def test_events_arrive_through_a_proxy(proxy: Proxy, sqlite_application: Application, tmp_path: Path) -> None:
    if shutil.which(proxy.program, path=PATH) is None:
        pytest.skip(f"{proxy.program} is not installed")
    settings = sqlite_application.migrate(f'[listener]\nport = 0\nhosts = ["{NAME}"]\ntrusted_proxies = ["{HOST}"]\n')
    folder = tmp_path / proxy.program
    folder.mkdir()
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            address: app.Address = await nursery.start(app.serve, settings)
            async with proxied(proxy, folder, address.port) as dial, StompClient(await dial()) as client:
                await client.upgrade(NAME)
                await client.connect()
                await client.subscribe(headers=[("replay", "none")])
                sqlite_application.tag(proxy.program)
                assert f'"id":"{proxy.program}"'.encode() in (await client.receive()).body
                await client.disconnect()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: f"{proxy.program} of {proxy.source}")
async def test_event_stream_through_a_proxy(proxy: Proxy, sqlite_application: Application, tmp_path: Path) -> None:
    """Events arrive at once. While the server is down or at its limit, an ``EventSource`` gets a stream that ends."""
    if shutil.which(proxy.program, path=PATH) is None:
        pytest.skip(f"{proxy.program} is not installed")
    listener = f'port = {free_port()}\nhosts = ["{NAME}"]\ntrusted_proxies = ["{HOST}"]\nconnections_max = 1\n'
    listener += f'allowed_origins = ["{ORIGIN}"]\n'
    settings = sqlite_application.migrate(f"[listener]\n{listener}heartbeat_ms = 500\n")
    folder = tmp_path / proxy.program
    folder.mkdir()
    names = [f"{proxy.program}{number}" for number in range(3)]
    async with proxied(proxy, folder, settings.listener.port) as dial:
        with trio.fail_after(TIMEOUT_S):
            if proxy.answers_for_server:
                await assert_later(dial)
            async with trio.open_nursery() as nursery, await dial() as stream:
                await nursery.start(app.serve, settings)
                found = await EventStream(stream).request("/events/tag.updated?replay=none", host=NAME)
                assert (found.status, found.headers["content-type"]) == (200, "text/event-stream")
                await found.subscribed()
                for name in names:
                    sqlite_application.tag(name)
                    assert (await found.receive()).json["payload"]["id"] == name
                await assert_later(dial)  # the server is at its limit, and answers itself
                with trio.move_on_after(1.5):
                    await found.receive()
                assert found.parser.comments > 0
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: f"{proxy.program} of {proxy.source}")
async def test_client_that_leaves_frees_its_connection(
    proxy: Proxy, sqlite_application: Application, tmp_path: Path
) -> None:
    """Within seconds: at the next heart-beat, after half a minute, any proxy would notice."""
    if shutil.which(proxy.program, path=PATH) is None:
        pytest.skip(f"{proxy.program} is not installed")
    settings = sqlite_application.migrate(
        f'[listener]\nport = 0\nhosts = ["{NAME}"]\ntrusted_proxies = ["{HOST}"]\nconnections_max = 1\n'
    )
    folder = tmp_path / proxy.program
    folder.mkdir()
    async with trio.open_nursery() as nursery:
        address: app.Address = await nursery.start(app.serve, settings)
        async with proxied(proxy, folder, address.port) as dial:
            with trio.fail_after(TIMEOUT_S):
                async with await dial() as stream:
                    found = await EventStream(stream).request("/events?replay=none", host=NAME)
                    await found.subscribed()
            with trio.fail_after(LEFT_S):
                while not await is_subscribed(dial):
                    pass
        nursery.cancel_scope.cancel()


async def test_caddy_stops_while_a_client_reads_events(sqlite_application: Application, tmp_path: Path) -> None:
    """Without a limit Caddy would accept no more clients, and end only after the last one has left."""
    if shutil.which("caddy", path=PATH) is None:
        pytest.skip("caddy is not installed")
    settings = sqlite_application.migrate(
        f'[listener]\nport = 0\nhosts = ["{NAME}"]\ntrusted_proxies = ["{HOST}"]\ndrain_s = 0\n'
    )
    deployed = next(proxy for proxy in PROXIES if proxy.program == "caddy" and proxy.source == "deploy")
    with trio.fail_after(TIMEOUT_S / 2):  # `proxied` waits up to twice this time for the proxy to end
        async with trio.open_nursery() as nursery:
            address: app.Address = await nursery.start(app.serve, settings)
            async with AsyncExitStack() as clients, proxied(deployed, tmp_path, address.port) as dial:
                found = EventStream(await clients.enter_async_context(await dial()))
                await (await found.request("/events?replay=none", host=NAME)).subscribed()
            nursery.cancel_scope.cancel()


async def is_subscribed(dial: Dial) -> bool:
    """Return whether a request is answered with events; if not, the server is at its limit."""
    async with await dial() as stream:
        found = await EventStream(stream).request("/events?replay=none", host=NAME)
        try:
            await found.receive()
        except EOFError:
            return False
        return True


async def assert_later(dial: Dial) -> None:
    """Assert that a request is answered with a stream that ends.

    A page of another origin may read it; otherwise the page would not reconnect.
    """
    async with await dial() as stream:
        later = await EventStream(stream).request("/events", host=NAME, headers=[("Origin", ORIGIN)])
        assert (later.status, later.headers["content-type"]) == (200, "text/event-stream")
        assert later.headers["access-control-allow-origin"] == ORIGIN
        assert later.headers["access-control-allow-credentials"] == "true"
        with pytest.raises(EOFError):
            await later.receive()
        assert later.parser.retry == 5000
