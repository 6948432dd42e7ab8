"""Airy's inbox, unchanged, in a real browser: it misses nothing across a restart and a network cut."""

import json
from pathlib import Path

import pytest
import trio

from tests.admin.serving import serving
from tests.application import Application
from tests.clients.page import LIBRARY, inbox, network
from tests.console.browser import browsing
from tests.processes import server

TIMEOUT_S = 55.0


async def test_page_loses_nothing_across_restart_and_lost_connection(
    sqlite_application: Application, tmp_path: Path
) -> None:
    if not LIBRARY.is_file():
        pytest.skip("@stomp/stompjs is not installed: run `npm ci` in tests/clients")
    config = tmp_path / "airy.toml"
    listener = '[listener]\nport = 0\nallowed_origins = ["*"]\n[admin]\nport = 0\n[logging]\nformat = "json"\n'
    config.write_text(f'[database]\nurl = "{sqlite_application.url}"\n{listener}')
    sqlite_application.migrate()
    with trio.fail_after(TIMEOUT_S):
        async with (
            network() as link,
            serving(inbox(f"ws://127.0.0.1:{link.port}/ws.communication")) as site,
            browsing() as tab,
        ):
            async with server(config) as first:
                link.target = first.port
                await tab.open(f"http://127.0.0.1:{site.number}/")
                await tab.until("window.connects === 1")
                sqlite_application.tags(range(5))
                await tab.until("window.seen.length >= 5")
                await first.kill()
            sqlite_application.tags(range(5, 10))  # while there is no server
            async with server(config) as second:
                link.target = second.port
                await tab.until("window.connects === 2")
                sqlite_application.tags(range(10, 15))
                await tab.until("new Set(window.seen.map(([id]) => id)).size === 15")
                await link.cut()
                await tab.until("window.closes >= 2")
                sqlite_application.tags(range(15, 20))  # while there is no network
                link.mend()
                await tab.until("window.connects === 3")
                sqlite_application.tags(range(20, 25))
                await tab.until("new Set(window.seen.map(([id]) => id)).size === 25")
            seen = await tab.evaluate("window.seen")
    by_id = {id_: json.loads(body)["payload"]["id"] for id_, body in seen}
    assert sorted(by_id.values()) == sorted(f"t{number}" for number in range(25))
    offsets = sorted(int(id_.rpartition("-")[2]) for id_ in by_id)
    assert offsets == list(range(1, 26))
    first_seen = list(dict.fromkeys(id_ for id_, _ in seen))
    assert [int(id_.rpartition("-")[2]) for id_ in first_seen] == offsets  # in order too, without duplicates
