"""The files and statistics of the console over real HTTP. ``tests/console`` tests it in a browser."""

import os
import re
import socket

import pytest
import trio

from airy_trio.admin.endpoints import CONSOLE, MEDIA_TYPES, ClientEndpoint, node_of
from airy_trio.app import Address
from airy_trio.errors import SettingsError
from airy_trio.testing.client import connect
from tests.admin.serving import admin, free_port, serving_all
from tests.application import Application

ASSET = re.compile(r'(?:src|href)="(console/[^"]+)"')


def endpoint(url: str = "", *, host: str = "127.0.0.1", port: int = 8080, tls: bool = False) -> ClientEndpoint:
    address = Address(host=host, port=port, path="/ws.communication", tls=tls) if port else None
    return ClientEndpoint(url, token=False, address=address)


@pytest.mark.parametrize(
    "made, page, url",
    [
        (endpoint(), "localhost:8081", "ws://127.0.0.1:8080/ws.communication"),
        (endpoint(host="0.0.0.0"), "10.1.2.3:8081", "ws://10.1.2.3:8080/ws.communication"),  # noqa: S104 - the subject of the test
        (endpoint(host="::"), "[::1]:8081", "ws://[::1]:8080/ws.communication"),
        (endpoint(host="::1"), "localhost", "ws://[::1]:8080/ws.communication"),
        (endpoint(tls=True), "localhost", "wss://127.0.0.1:8080/ws.communication"),
        (endpoint("wss://chat.example.com/ws"), "localhost", "wss://chat.example.com/ws"),
        (endpoint(port=0), "localhost", None),
        (endpoint(host="0.0.0.0"), "; script-src *", None),  # noqa: S104 - the subject of the test
    ],
)
def test_websocket_url_for_a_browser(made: ClientEndpoint, page: str, url: str | None) -> None:
    assert made.url(page) == url
    origin = made.origin(page)
    assert origin == (None if url is None else "/".join(url.split("/")[:3]))


async def test_page_and_files_are_served_with_a_policy(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    async with serving_all(settings) as (address, port):
        page = await port.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assets = ASSET.findall(page.text)
        assert len(assets) == 4
        assert not re.search(r"<script(?![^>]*src=)|<style| style=| on[a-z]+=", page.text)
        modules = [f"console/{path.name}" for path in CONSOLE.glob("*.js")]
        for name in {*assets, *modules}:
            file = await port.get(f"/{name}")
            assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")
            assert file.headers["content-type"] == MEDIA_TYPES["." + name.rpartition(".")[2]]
            assert "//" not in re.sub(r"(?m)^\s*//.*| // .*|http://www\.w3\.org/\S*", "", file.text)  # no URL elsewhere
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert (policy["script-src"], policy["style-src"]) == ("'self'", "'self'")
        assert policy["connect-src"] == f"'self' ws://127.0.0.1:{address.port}"
        for away in ("/console/", "/console/__init__.py", "/console/../server.py", "/console/console.html"):
            assert (await port.get(away)).status_code == 404


async def test_figures_count_clients_and_deliveries(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(
        admin(free_port(), '[auth]\nmode = "tokens"\ntokens = { agent = "secret-1" }\n')
    )
    async with serving_all(settings) as (address, port):
        bearer = (("Authorization", "Bearer secret-1"),)
        async with await connect(address.host, address.port, headers=bearer) as client:
            await client.subscribe()
            sqlite_application.tag()
            await client.receive()
            answer = await port.get("/api/figures")
            found = answer.json()
            assert found["clients"] == {"url": address.url, "token": True, "allowed_origins": []}
            assert (found["connections"], found["subscriptions"], found["behind"]) == (1, 1, 0)
            assert (found["deliveries"], found["events"], found["row_faults"]) == (1, 1, 0)
            assert sum(found["latency"]["counts"]) == 1
            assert len(found["latency"]["counts"]) == len(found["latency"]["bounds_s"]) + 1
            assert found["parts"]["listener"]["well"]
            assert re.fullmatch(r"[a-z0-9]{6}-1", found["head"])
            assert "secret-1" not in answer.text + (await port.get("/api/connections")).text


async def test_connections_are_listed_in_pages(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    async with serving_all(settings) as (address, port):
        clients = [await connect(address.host, address.port) for _ in range(3)]
        for number, client in enumerate(clients):
            await client.subscribe(f"/events/conversation/{number}%2Fb")
        first = (await port.get("/api/connections?limit=2")).json()
        assert (first["total"], len(first["connections"])) == (3, 2)
        second = (await port.get(f"/api/connections?limit=2&after={first['next']}")).json()
        assert (len(second["connections"]), second["next"]) == (1, None)
        found = [*first["connections"], *second["connections"]]
        assert len({one["session"] for one in found}) == 3
        one = found[0]
        assert (one["user"], one["address"], one["state"], one["behind"]) == (None, "127.0.0.1", "live", 0)
        names = [each["destination"] for one in found for each in one["subscriptions"]]
        assert names == [f"/events/conversation/{number}%2Fb" for number in range(3)]
        for client in clients:
            await trio.aclose_forcefully(client.stream)


async def test_long_destinations_are_cut(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    async with serving_all(settings) as (address, port), await connect(address.host, address.port) as client:
        longest = "/events/channel/".ljust(512, "$")
        await client.subscribe(longest)
        (found,) = (await port.get("/api/connections")).json()["connections"]
        (shown,) = (one["destination"] for one in found["subscriptions"])
        assert (len(shown), shown[:22], shown[-1]) == (128, "/events/channel/%24%24", "…")


async def test_clients_behind_are_listed_with_their_lag(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    async with (
        serving_all(settings) as (address, port),
        await connect(address.host, address.port) as quick,
        await connect(address.host, address.port) as slow,
    ):
        await quick.subscribe()
        await slow.subscribe(headers=(("ack", "client"), ("prefetch-count", "1")))
        for number in range(4):
            sqlite_application.tag(f"t{number}")
            await quick.receive()
        page = (await port.get("/api/connections?behind=1")).json()
        (found,) = page["connections"]
        assert (found["behind"], found["behind_exactly"]) == (3, True)
        assert found["subscriptions"][0]["waits_for_acks"]


@pytest.mark.parametrize(
    "query, words",
    [
        ("limit=0", "limit must be a whole number, from 1 to 200"),
        ("limit=201", "limit must be a whole number, from 1 to 200"),
        ("after=-1", "after must be a whole number, 0 or more"),
        ("after=" + "9" * 19, "after must be a whole number, 0 or more"),
        ("behind=yes", "behind must be a whole number, from 0 to 1"),
        ("limit=%D9%A1", "limit must be a whole number, from 1 to 200"),
    ],
)
async def test_invalid_query_is_refused(query: str, words: str, sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(admin(free_port()))
    async with serving_all(settings) as (_, port):
        answer = await port.get(f"/api/connections?{query}")
        assert (answer.status_code, answer.json()) == (400, {"error": words})


def test_node_names_the_processes_of_its_command() -> None:
    alone = node_of(0, range(81, 82), [])
    assert alone["processes"] == [{"name": "", "port": 81}]
    assert (alone["host"], alone["process"]) == (socket.gethostname(), os.getpid())
    assert node_of(0, range(0), [])["processes"] == []
    several = node_of(1, range(81, 84), ["http://b:81"])
    assert several["processes"] == [
        {"name": "worker 0", "port": 81},
        {"name": "worker 1", "port": 82},
        {"name": "recorder", "port": 83},
    ]
    assert (several["number"], several["others"]) == (1, ["http://b:81"])


@pytest.mark.parametrize("url", ["http://b", "http://b:65535", "http://[::1]:8081/", "https://ops.example.com/b/"])
def test_other_console_is_accepted(url: str, sqlite_application: Application) -> None:
    settings = sqlite_application.settings(f'[admin]\nport = 0\nothers = ["http://a:8081", "{url}"]\n')
    assert settings.admin.others == ["http://a:8081", url]


@pytest.mark.parametrize(
    "url",
    [
        "", "b:8081", "javascript:alert(1)", "ws://b/", "http://a b/", "http://u:p@b/", "http://b:65536", "http://",
        "http://[:::::]:80", "http://[1.2.3.4]/", "http://[::12345]",
    ],
)  # fmt: skip
def test_invalid_other_console_is_refused(url: str, sqlite_application: Application) -> None:
    with pytest.raises(
        SettingsError, match=r"^admin\.others: found an invalid URL at \[1\], expected .*http://HOST:PORT"
    ):
        sqlite_application.settings(f'[admin]\nport = 0\nothers = ["http://a:8081", "{url}"]\n')


@pytest.mark.parametrize(
    "url", ["http://x/", "wss://a b/", "wss://x; script-src *", "wss://x", "wss://x:65536/", "ws://[::::]/"]
)
def test_invalid_websocket_url_is_refused(url: str, sqlite_application: Application) -> None:
    with pytest.raises(SettingsError, match="websocket_url"):
        sqlite_application.settings(f'[admin]\nport = 0\nwebsocket_url = "{url}"\n')
