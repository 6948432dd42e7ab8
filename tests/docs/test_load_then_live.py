"""Pages that load and then follow, in a real browser. After each fault they show the rows of the database."""

import json
from collections.abc import AsyncIterator, Mapping
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
from tests.processes import run, server

TIMEOUT_S = 90.0
SHOWN = "[...document.querySelectorAll('li')].map((item) => item.textContent)"
SETTINGS = '[events]\ndeletes = true\n[listener]\nport = 0\nallowed_origins = ["*"]\n[admin]\nport = 0\n'

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S + 10)]


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

    async def refused(self) -> None:
        """Answer two requests with 502, as a proxy without its server does. An EventSource gives up after the first."""
        requests = []

        def answer(request: PageRequest) -> Answer:
            requests.append(request)
            return Answer(HTTPStatus.BAD_GATEWAY, b"", {})

        async with serving(Pages(dict.fromkeys(("/events", "/ws.communication"), answer))) as other:
            self.link.target = other.number
            while len(requests) < 2:  # noqa: ASYNC110 - the pages have no event
                await trio.sleep(0.05)

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
async def showing(application: Application, text: str, scripts: Mapping[str, str]) -> AsyncIterator[Shown]:
    """Serve a page to a browser, with its scripts and the API from which it loads."""
    if not LIBRARY.is_file():
        pytest.skip("@stomp/stompjs is not installed: run `npm ci` in tests/clients")

    faults = [HTTPStatus.SERVICE_UNAVAILABLE]  # a page has to load again

    def rows(_request: PageRequest) -> Answer:
        if faults:
            return Answer(faults.pop(), b"", {})
        with application.engine.connect() as connection:
            found = [dict(row._mapping) for row in connection.execute(sa.text("select id, name from tags"))]  # noqa: SLF001 - SQLAlchemy's name for it
        return Answer(HTTPStatus.OK, json.dumps(found).encode(), {"content-type": "application/json"})

    def script(request: PageRequest) -> Answer:
        return Answer(HTTPStatus.OK, served[request.path].encode(), {"content-type": "text/javascript"})

    served = {"/stomp.umd.min.js": LIBRARY.read_text(), **scripts}
    async with network() as link:
        html = text.replace("localhost:8080", f"127.0.0.1:{link.port}").encode()

        def page(_request: PageRequest) -> Answer:
            return Answer(HTTPStatus.OK, html, {"content-type": "text/html"})

        pages = Pages({"/": page, "/api/tags": rows, **dict.fromkeys(served, script)})
        async with serving(pages) as site, browsing() as tab:
            await tab.open(f"http://127.0.0.1:{site.number}/")
            yield Shown(tab, link, application)


def program(page: str, name: str) -> str:
    """Return a file that a page of the documentation shows."""
    [text] = [step.text for step in steps((FOLDER / page).read_text()) if (step.kind, step.words) == ("file", name)]
    return text


@pytest.mark.parametrize(
    "page,name",
    [
        ("how-to/load-then-live.md", "current.html"),
        ("how-to/load-then-live.md", "load.html"),
        ("how-to/load-then-live.md", "resume.html"),
        ("how-to/event-streams.md", "tags.html"),
        ("how-to/event-streams.md", "kept.html"),
    ],
)
async def test_the_page_shows_what_the_database_has(
    page: str, name: str, sqlite_application: Application, tmp_path: Path
) -> None:
    await follows(sqlite_application, tmp_path, program(page, name), {})


@pytest.mark.parametrize(
    "page,name", [("how-to/load-then-live.md", "current.html"), ("how-to/event-streams.md", "tags.html")]
)
async def test_page_is_live_after_the_current_state_was_cut_off(
    page: str, name: str, sqlite_application: Application, tmp_path: Path
) -> None:
    """The page resumes within the state. Then no message announces the end of the state."""
    config = tmp_path / "airy.toml"
    config.write_text(f'[database]\nurl = "{sqlite_application.url}"\n{SETTINGS}[logging]\nformat = "json"\n')
    sqlite_application.migrate("[events]\ndeletes = true\n")
    with trio.fail_after(TIMEOUT_S):
        async with showing(sqlite_application, program(page, name), {}) as shown, server(config) as serving:
            for number in range(300):
                sqlite_application.tag(f"t{number}", name=f"tag {number}")
            shown.link.bytes_max = 15_000
            shown.link.target = serving.port
            await shown.until_equal()
            assert shown.link.connections == 2
            await shown.tab.until("document.getElementById('status').textContent === 'live'")


async def follows(application: Application, folder: Path, text: str, scripts: Mapping[str, str]) -> None:
    """Check that a page shows the database: at first, after changes, a restart, a network cut, a reload, and a refusal.

    A page with the current state is also checked after a reset.
    """
    whole = text + "".join(scripts.values())
    config = folder / "airy.toml"
    config.write_text(f'[database]\nurl = "{application.url}"\n{SETTINGS}[logging]\nformat = "json"\n')
    application.migrate("[events]\ndeletes = true\n")
    with trio.fail_after(TIMEOUT_S):
        async with showing(application, text, scripts) as shown:
            shown.change(0)
            async with server(config) as first:
                shown.link.target = first.port
                await shown.until_equal()
                if 'id="status"' in text:
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
                await second.kill()
            await shown.refused()
            shown.change(50)
            async with server(config) as resumed:
                shown.link.target = resumed.port
                await shown.until_equal()
                await resumed.kill()
            if "replay: 'current'" in whole or "replay=current" in whole:
                forget(application, folder)
                async with server(config) as third:
                    shown.link.target = third.port
                    ended = await run("backfill", "--config", str(config))
                    assert ended.code == 0, ended
                    await shown.until_equal()


def forget(application: Application, folder: Path) -> None:
    """Remove the event log, and a row whose deletion no event reports."""
    application.execute("delete from tags where id = 't40'")
    application.execute(f"delete from {application.log_table('change_log')}")
    found = list(folder.glob("*.airy-trio.db*"))
    assert found
    for file in found:
        file.unlink()
