"""The three pages of "Load, then live" in a real browser: after each fault they show what the database has."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from attrs import frozen

from airy_trio.admin.server import Answer, PageRequest, Pages
from tests.admin.serving import serving
from tests.application import Application
from tests.clients.page import LIBRARY, Network, network
from tests.console.browser import Tab, browsing
from tests.docs.pages import FOLDER, steps
from tests.processes import server

TIMEOUT_S = 60.0
SHOWN = "[...document.querySelectorAll('li')].map((item) => item.textContent)"
SETTINGS = '[events]\ndeletes = true\n[listener]\nport = 0\nallowed_origins = ["*"]\n[admin]\nport = 0\n'

pytestmark = pytest.mark.slow


@frozen
class Shown:
    """A page in a browser, its network to the server, and the application that it shows."""

    tab: Tab
    link: Network
    application: Application

    async def until_equal(self) -> None:
        """Wait until the page shows the names of all tags."""
        names = await trio.to_thread.run_sync(self._names)
        await self.tab.until(f"JSON.stringify({SHOWN}) === {json.dumps(json.dumps(names, separators=(',', ':')))}")

    def change(self, begin: int) -> None:
        """Add three tags, rename one, and delete one."""
        for number in range(begin, begin + 3):
            self.application.tag(f"t{number}", name=f"tag {number}")
        self.application.execute(f"update tags set name = 'renamed {begin}' where id = 't{begin}'")
        self.application.execute(f"delete from tags where id = 't{begin + 1}'")

    def _names(self) -> list[str]:
        with self.application.engine.connect() as connection:
            return sorted(connection.execute(sa.text("select name from tags")).scalars())


@asynccontextmanager
async def showing(application: Application, name: str) -> AsyncIterator[Shown]:
    """Serve one of the pages, with the API that it loads from, to a browser."""
    if not LIBRARY.is_file():
        pytest.skip("@stomp/stompjs is not installed: run `npm ci` in tests/clients")
    [text] = [step.text for step in steps((FOLDER / "how-to/load-then-live.md").read_text()) if step.words == name]

    def rows(_request: PageRequest) -> Answer:
        with application.engine.connect() as connection:
            found = [dict(row._mapping) for row in connection.execute(sa.text("select id, name from tags"))]  # noqa: SLF001 - SQLAlchemy's name for it
        return Answer(HTTPStatus.OK, json.dumps(found).encode(), {"content-type": "application/json"})

    def library(_request: PageRequest) -> Answer:
        return Answer(HTTPStatus.OK, LIBRARY.read_bytes(), {"content-type": "text/javascript"})

    async with network() as link:
        html = text.replace("ws://localhost:8080", f"ws://127.0.0.1:{link.port}").encode()

        def page(_request: PageRequest) -> Answer:
            return Answer(HTTPStatus.OK, html, {"content-type": "text/html"})

        pages = Pages({"/": page, "/stomp.umd.min.js": library, "/api/tags": rows})
        async with serving(pages) as site, browsing() as tab:
            await tab.open(f"http://127.0.0.1:{site.number}/")
            yield Shown(tab, link, application)


@pytest.mark.parametrize("name", ["current.html", "load.html", "resume.html"])
async def test_the_page_shows_what_the_database_has(name: str, sqlite_application: Application, tmp_path: Path) -> None:
    config = tmp_path / "airy.toml"
    config.write_text(f'[database]\nurl = "{sqlite_application.url}"\n{SETTINGS}[logging]\nformat = "json"\n')
    sqlite_application.migrate("[events]\ndeletes = true\n")
    with trio.fail_after(TIMEOUT_S):
        async with showing(sqlite_application, name) as shown:
            shown.change(0)
            async with server(config) as first:
                shown.link.target = first.port
                await shown.until_equal()
                if name != "resume.html":
                    await shown.tab.until("document.getElementById('status').textContent === 'live'")
                shown.change(10)
                await shown.until_equal()
                await first.kill()
            shown.change(20)
            async with server(config) as second:
                shown.link.target = second.port
                await shown.until_equal()
                await shown.link.cut()
                shown.change(30)
                shown.link.mend()
                await shown.until_equal()
                await shown.tab.do(lambda page: page.reload())
                shown.change(40)
                await shown.until_equal()
