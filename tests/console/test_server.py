"""The name of the server in the console, links to other consoles, and faults next to the figures that they affect."""

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from playwright.sync_api import Page

from airy_trio import __version__, app
from airy_trio.admin import readiness
from airy_trio.admin.endpoints import starting_pages
from airy_trio.admin.readiness import Starting
from airy_trio.admin.server import AdminOptions, open_listeners, serve
from airy_trio.sessions import session
from airy_trio.testing.client import connect
from tests.admin.serving import HOST, free_port, serving_all
from tests.application import Application, application
from tests.console.browser import Tab, browsing
from tests.console.serving import LIVE, TIMEOUT_S, console, settings_text
from tests.postgres import Postgres
from tests.processes import AIRY_TRIO, Server, free_ports, running

CONSOLES = "[...document.querySelectorAll('#consoles li')].map((item) => item.textContent)"
LINKS = "[...document.querySelectorAll('#consoles a')].map((link) => link.href)"
LEASE = "from pg_locks where locktype = 'advisory' and objsubid = 2 and database = "
LEASE += "(select oid from pg_database where datname = current_database())"
TAKE = f"select pg_advisory_lock(classid::bigint::bit(32)::int, objid::bigint::bit(32)::int) {LEASE}"
WAITS = f"select count(*) {LEASE} and not granted"
TERMINATE = f"select pg_terminate_backend(pid, 5000) {LEASE} and granted"


def reads(selector: str, text: str) -> str:
    """Return the JavaScript condition that an element is visible and contains a text."""
    found = f"document.querySelector({json.dumps(selector)})"
    return f"{found}?.checkVisibility() && {found}.innerText.includes({json.dumps(text)})"


def follow(page: Page) -> None:
    """Press Enter on the link that has the focus."""
    with page.expect_navigation():
        page.keyboard.press("Enter")


async def no_faults(tab: Tab) -> None:
    await tab.until("[...document.querySelectorAll('.faults')].every((list) => list.hidden)")
    await tab.until(reads("#state", "ready"))
    await tab.until("document.querySelector('#state').className === 'well'")


@asynccontextmanager
async def forwarded(port: int) -> AsyncIterator[int]:
    """Forward the connections of another port to this one, as ``kubectl port-forward`` does."""

    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for data in source:
            await target.send_all(data)

    async def forward(client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream(HOST, port) as server, trio.open_nursery() as both:
            both.start_soon(copy, client, server)
            await copy(server, client)
            both.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, forward, 0, host=HOST))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_page_names_its_server(sqlite_application: Application) -> None:
    async with console(sqlite_application) as (tab, _):
        facts = f"process {os.getpid()} · version {__version__} · records"
        await tab.until(f"document.querySelector('#process').textContent === {json.dumps(facts)}")
        assert await tab.evaluate("document.querySelector('#host').textContent") == socket.gethostname()
        assert await tab.evaluate("document.title") == f"{socket.gethostname()} – airy-trio console"
        assert await tab.evaluate("document.querySelector('#consoles').checkVisibility()") is False


@pytest.mark.timeout(2 * TIMEOUT_S)
async def test_consoles_of_workers_link_to_each_other(sqlite_application: Application, tmp_path: Path) -> None:
    port, config = free_ports(3), tmp_path / "airy-trio.toml"
    sqlite_application.migrate()
    config.write_text(
        f'[database]\nurl = "{sqlite_application.url}"\n[listener]\nport = 0\nworkers = 2\n'
        f'[admin]\nport = {port}\n[logging]\nformat = "json"\n'
    )
    with trio.fail_after(TIMEOUT_S):
        async with running(Server, [*AIRY_TRIO, "--config", str(config)]) as server, browsing() as tab:
            await server.record("all workers listen")
            await tab.open(f"http://{HOST}:{port + 1}/")
            await tab.until(reads("#process", "worker 1 · process "))
            assert await tab.evaluate(CONSOLES) == ["worker 0", "worker 1", "recorder"]
            assert await tab.evaluate(LINKS) == [f"http://{HOST}:{port}/", f"http://{HOST}:{port + 2}/"]
            assert await tab.evaluate("document.querySelector('#consoles [aria-current]').textContent") == "worker 1"
            await tab.until(reads("#process", "does not record"))
            await tab.evaluate("document.querySelector('#consoles li:last-child a').focus()")
            await tab.do(follow)
            pid = (await server.record("worker started", worker="recorder"))["pid"]
            await tab.until(reads("#process", f"recorder · process {pid} · version {__version__} · records"))
            assert (await tab.evaluate("document.title")).startswith(f"{socket.gethostname()}, recorder")
            async with forwarded(port) as other:
                await tab.open(f"http://{HOST}:{other}/")
                await tab.until(reads("#process", "worker 0"))
                assert await tab.evaluate(CONSOLES) == ["worker 0", "worker 1", "recorder"]
                assert await tab.evaluate(LINKS) == []  # their ports behind the proxy are not known


async def test_console_links_to_others_in_the_settings(sqlite_application: Application) -> None:
    ports = [free_port(), free_port()]
    urls = [*(f"http://{HOST}:{port}" for port in ports), "https://ops.example.com/b", "https://ops.example.com/b/"]
    servers = [
        sqlite_application.migrate(f"[listener]\nport = 0\n[admin]\nport = {port}\nothers = {json.dumps(urls)}\n")
        for port in ports
    ]
    with trio.fail_after(TIMEOUT_S):
        async with serving_all(servers[0]), serving_all(servers[1]), browsing() as tab:
            await tab.open(f"{urls[0]}/")
            await tab.until("!document.querySelector('#consoles').hidden")
            assert await tab.evaluate(CONSOLES) == [f"{HOST}:{ports[1]}", "ops.example.com/b"]
            await tab.evaluate("document.querySelector('#consoles a').focus()")
            shown = await tab.evaluate("document.querySelector('#deliveries-chart svg').ariaLabel")
            await tab.until(f"document.querySelector('#deliveries-chart svg').ariaLabel !== {json.dumps(shown)}")
            await tab.do(follow)  # the links keep the focus while the figures change
            assert await tab.evaluate("location.port") == str(ports[1])
            await tab.until("!document.querySelector('#consoles').hidden")
            assert await tab.evaluate(LINKS) == [f"{urls[0]}/", urls[3]]


async def test_row_faults_are_shown_at_the_recorder(sqlite_application: Application) -> None:
    async with console(sqlite_application) as (tab, _):
        await no_faults(tab)
        sqlite_application.message(delivery_state="lost")
        await tab.until(reads("#lag-faults", "1 row fault since the server started"))
        assert await tab.evaluate("document.querySelector('#state').textContent") == "ready"


async def test_unavailable_parts_are_shown_at_their_figures(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "TRIGGERS_PERIOD_S", 0.1)
    monkeypatch.setattr(readiness, "CHANGE_PERIOD_S", 0.1)
    with application(own_postgres.url(own_postgres.create_database())) as writing:
        async with console(writing) as (tab, _):
            await no_faults(tab)
            await trio.to_thread.run_sync(own_postgres.stop)
            await tab.until(reads("#deliveries-faults", "store: the event store cannot be read: "))
            await tab.until(reads("#lag-faults", "feed: recording is interrupted: "))
            await tab.until(reads("#lag-faults", "triggers: the database cannot be queried: "))
            await tab.until(reads("#lag-detail", "stopped recording at "))
            await tab.until(reads("#state", "not ready"))
            assert await tab.evaluate("document.querySelector('#connected-faults').hidden")
            await trio.to_thread.run_sync(own_postgres.start)
            await no_faults(tab)
            await tab.until(reads("#lag-detail", "this server records"))


async def test_lost_lease_is_shown_at_the_recorder(postgres_application: Application) -> None:
    async with console(postgres_application) as (tab, _):
        await tab.until(reads("#lag-detail", "this server records"))
        with postgres_application.engine.connect() as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, partial(other.execute, sa.text(TAKE)))
                while not postgres_application.scalar(WAITS):  # noqa: ASYNC110 - Postgres has no event for it
                    await trio.lowlevel.checkpoint()
                postgres_application.execute(TERMINATE)  # the first process in the queue gets the lease
            await tab.until(reads("#lag-detail", "stopped recording at "))
            await tab.until(reads("#lag-detail", ": the lease was lost or offered"))
            await tab.until(reads("#process", "does not record"))
            other.execute(sa.text("select pg_advisory_unlock_all()"))
            await tab.until("document.querySelector('#lag-detail').textContent === 'this server records'")
            await tab.until("document.querySelector('#process').textContent.endsWith(' records')")


async def test_closed_port_for_clients_is_shown_at_the_connections(
    sqlite_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CLOSE_TIMEOUT_S", TIMEOUT_S)  # the client below delays the shutdown
    settings, stopping = sqlite_application.migrate(settings_text()), trio.Event()
    with trio.fail_after(TIMEOUT_S):
        async with browsing() as tab, trio.open_nursery() as nursery:
            address = await nursery.start(partial(app.serve, settings, stopping=stopping))
            await tab.open(f"http://{HOST}:{settings.admin.port}/")
            await tab.until(LIVE)
            async with await connect(HOST, address.port):
                stopping.set()
                await tab.until(reads("#connected-faults", "listener: this server is shutting down"))


async def test_console_names_the_setting_that_refuses_it(sqlite_application: Application) -> None:
    text = settings_text().replace("[admin]", 'allowed_origins = ["https://app.example.org"]\n[admin]')
    settings = sqlite_application.migrate(text)
    page = f"http://{HOST}:{settings.admin.port}"
    with trio.fail_after(TIMEOUT_S):
        async with serving_all(settings), browsing() as tab:
            await tab.open(page)
            await tab.until(reads("#trouble", f"[listener] allowed_origins does not list this page, {page}."))


async def test_open_page_shows_that_the_server_starts_or_ends(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(settings_text())
    starting = Starting()
    with trio.fail_after(TIMEOUT_S):
        async with browsing() as tab:
            async with serving_all(settings):
                await tab.open(f"http://{HOST}:{settings.admin.port}/")
                await tab.until(LIVE)
            await tab.until(reads("#trouble", "The admin port has not answered since "))
            await tab.until(reads("#clients-fault", "This list has been out of date since "))
            assert await tab.evaluate("document.querySelector('#state').textContent") == "no answer"
            async with trio.open_nursery() as nursery:  # as a server does before its database answers
                listeners = await open_listeners(AdminOptions(port=settings.admin.port))
                nursery.start_soon(serve, listeners, starting_pages(starting.conditions))
                with starting.waiting_for("the database (database.url)"):
                    await tab.until(reads("#state", "starting"))
                    await tab.until(reads("#trouble", "waiting for the database (database.url): no answer yet"))
                    await tab.until(reads("#parts", "not ready: waiting for the database"))
                nursery.cancel_scope.cancel()
            async with serving_all(settings):
                await no_faults(tab)
                assert await tab.evaluate("document.querySelector('#trouble').hidden")
                await tab.until("document.querySelector('#clients-fault').hidden")
