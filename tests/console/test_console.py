"""The console in a real Chromium, against a whole server."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from airy_trio.capture import mapping
from tests.application import MESSAGE, Application
from tests.console.browser import browsing
from tests.console.serving import LIVE, TIMEOUT_S, TOO_FAINT, console, settings_text
from tests.processes import server

POSITIONS = "[...document.querySelectorAll('#log li[data-position]')].map((row) => row.dataset.position)"
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def rows(count: int) -> str:
    return f"document.querySelectorAll('#log li[data-position]').length === {count}"


def shows(text: str) -> str:
    return f"document.querySelector('#log').innerText.includes({json.dumps(text)})"


async def test_shows_the_current_state_and_then_changes(sqlite_application: Application) -> None:
    async with console(sqlite_application, "[replay]\nwindow_s = 0\n") as (tab, _):
        sqlite_application.tag("t1", name="first")
        sqlite_application.tag("t2", name="second")
        await tab.until(rows(2))
        sqlite_application.execute("update tags set name = 'renamed' where id = 't1'")
        await tab.until(rows(3))
        await tab.click("#current")
        await tab.until(shows("The current state is complete"))
        await tab.until(rows(2))
        assert await tab.evaluate("document.querySelector('#log').innerText.includes('first')") is False
        await tab.until(shows("The current state is not complete for"))
        sqlite_application.tag("t3", name="third")
        await tab.until(rows(3))


async def test_browser_presents_the_token_as_a_password(sqlite_application: Application) -> None:
    password = {"username": "anyone", "password": "t" * 16}
    async with console(sqlite_application, f'token = "{"t" * 16}"\n', http_credentials=password) as (tab, _):
        sqlite_application.tag()
        await tab.until(rows(1))
        await tab.until("document.querySelector('#link').dataset.phase === 'live'")


async def test_live_events_filters_and_keyboard(sqlite_application: Application) -> None:
    async with console(sqlite_application) as (tab, _):
        sqlite_application.message()
        await tab.until(shows("Hello World"))
        sqlite_application.message(id="m2", conversation_id="c2", channel_id="ch2", content='{"text": "Elsewhere"}')
        sqlite_application.metadata("conversation", "c1", "contact.displayName", "Grace")
        sqlite_application.channel()
        sqlite_application.tag()
        await tab.until(rows(5))
        assert (await tab.evaluate("document.querySelector('#log summary .kind').textContent")) == "tag"

        await tab.click(".types label:nth-of-type(1)")  # no messages
        await tab.until(rows(3))
        await tab.click(".types label:nth-of-type(1)")
        await tab.fill("#conversation", "c1")
        await tab.until(rows(2))  # its message and its metadata, from the event log
        assert not await tab.evaluate(shows("Elsewhere"))
        sqlite_application.message(id="m3", conversation_id="c1", content='{"text": "And here"}')
        await tab.until(shows("And here"))
        await tab.click("#clear")
        await tab.fill("#channel", "ch2")
        await tab.until(rows(1))
        assert await tab.evaluate(shows("Elsewhere"))
        await tab.click("#clear")
        await tab.until(rows(6))

        await tab.evaluate("document.querySelector('#log summary').focus()")
        await tab.press("ArrowDown", "End", "Home", "Enter")
        await tab.until("document.querySelector('#log li:first-child details').open")
        position = await tab.evaluate("document.querySelector('#log li:first-child').dataset.position")
        await tab.until(f"document.activeElement.parentElement.innerText.includes({json.dumps(position)})")
        await tab.press("Tab")
        assert await tab.evaluate("document.activeElement.tagName === 'BUTTON'")


async def test_a_payload_stays_text(sqlite_application: Application) -> None:
    async with console(sqlite_application) as (tab, _):
        sqlite_application.message(content=json.dumps({"text": EVIL}), conversation_id=EVIL, channel_id=EVIL)
        sqlite_application.tag("t1", EVIL, EVIL)
        await tab.until(rows(2))
        for number in (1, 2):
            await tab.click(f"#log li:nth-child({number}) summary")
        await tab.until("document.querySelectorAll('#log pre').length === 2")
        assert await tab.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert (await tab.evaluate("document.title")).endswith("airy-trio console")
        assert EVIL in await tab.evaluate(
            "document.querySelector('#log .what').textContent + document.querySelector('#log').textContent"
        )
        refused = await tab.evaluate(  # the policy would also have blocked it
            "new Promise((done) => { document.addEventListener('securitypolicyviolation',"
            " ({effectiveDirective}) => done(effectiveDirective)); const one = document.createElement('script');"
            " try { one.textContent = 'document.title = 1' } catch { done('script-src-elem') }"
            " document.head.append(one) })"
        )
        assert refused.startswith(("script-src", "require-trusted-types-for"))


async def test_resumes_after_a_restart_without_gap_or_duplicate(
    sqlite_application: Application, tmp_path: Path
) -> None:
    text = settings_text() + "[replay]\nwindow_s = 0\n"
    config = tmp_path / "airy.toml"
    config.write_text(f'[database]\nurl = "{sqlite_application.url}"\n{text}')
    settings = sqlite_application.migrate(text)
    with trio.fail_after(TIMEOUT_S):
        async with browsing() as tab:
            async with server(config) as quiet:
                await tab.open(f"http://127.0.0.1:{settings.admin.port}/")
                await tab.until(LIVE)
                await quiet.kill()
            for number in range(5):
                sqlite_application.tag(f"t{number}")
            async with server(config) as first:
                await tab.until(rows(5))
                await first.kill()
            await tab.until("document.querySelector('#link').dataset.phase === 'waiting'")
            for number in range(5, 12):
                sqlite_application.tag(f"t{number}")
            async with server(config):
                await tab.until(rows(12))
                assert await tab.evaluate("document.querySelector('#verdict').textContent.startsWith('Resumed after')")
                sqlite_application.tag("t12")
                await tab.until(rows(13))
                offsets = [int(one.rpartition("-")[2]) for one in await tab.evaluate(POSITIONS)]
                assert offsets == list(range(13, 0, -1))


async def test_token_is_requested_and_not_stored(sqlite_application: Application) -> None:
    auth = '[auth]\nmode = "tokens"\ntokens = { agent = "right-token" }\n'
    async with console(sqlite_application, auth, wait=False) as (tab, _):
        await tab.until("!document.querySelector('#token-form').hidden")
        await tab.fill("#token", "wrong-token")
        await tab.until("document.querySelector('#token-reason').textContent.includes('was not accepted')")
        await tab.fill("#token", "right-token")
        await tab.until(LIVE)
        sqlite_application.tag()
        await tab.until(rows(1))
        await tab.until("document.querySelector('#clients').innerText.includes('this page')")
        kept = await tab.evaluate(
            "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
            " + document.documentElement.outerHTML + document.querySelector('#token').value"
        )
        assert "right-token" not in kept


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_on_a_phone(sqlite_application: Application, dark: bool) -> None:
    scheme = "dark" if dark else "light"
    phone: dict[str, Any] = {
        "viewport": {"width": 320, "height": 640},
        "color_scheme": scheme,
        "reduced_motion": "reduce",
    }
    background = "getComputedStyle(document.body).backgroundColor"
    async with console(sqlite_application, **phone) as (tab, _):
        sqlite_application.message(conversation_id="c" * 200, content=json.dumps({"text": "long" * 100}))
        await tab.until(rows(1))
        await tab.click("#log summary")
        await tab.until("document.querySelector('#log pre') !== null")
        assert await tab.evaluate("document.documentElement.scrollWidth") == 320
        assert await tab.evaluate("getComputedStyle(document.querySelector('#log li')).animationName") == "none"
        ground = await tab.evaluate(background)
        assert (sum(map(int, ground[4:-1].split(","))) < 200) is dark
        await tab.click("#theme")
        await tab.click("#theme")
        assert await tab.evaluate("document.documentElement.dataset.theme") == "dark"
        assert (await tab.evaluate(background) == ground) is dark
        await tab.click("#theme")
        assert await tab.evaluate(TOO_FAINT) == []
        await tab.until(  # everything has a name, the charts once they have figures
            "[...document.querySelectorAll('input, button, svg[role=img]')].every((one) => one.ariaLabel"
            " || one.textContent.trim() || one.labels?.length)"
        )


async def test_many_events_charts_and_clients(sqlite_application: Application) -> None:
    async with console(sqlite_application) as (tab, _):
        await tab.until("document.querySelector('#clients').innerText.includes('this page')")
        await tab.evaluate(
            "window.longest = 0; let last = performance.now(); (function turn() { const now = performance.now();"
            " window.longest = Math.max(window.longest, now - last); last = now; requestAnimationFrame(turn) })()"
        )
        with sqlite_application.engine.begin() as connection:
            for number in range(5000):
                connection.exec_driver_sql(
                    "insert into tags values (?, ?, 'tag-red')", (f"n{number}", f"tag number {number}")
                )
        await tab.until("document.querySelector('#count').textContent.startsWith('5,000 received')")
        await tab.until(shows("tag number 4999"))
        assert 0 < await tab.evaluate("document.querySelectorAll('#log li').length") <= 250
        assert await tab.evaluate("window.longest") < 2000  # milliseconds; the machine may be busy
        await tab.until("(document.querySelector('#deliveries-chart .line').getAttribute('d') ?? '').includes('L')")
        await tab.until("document.querySelector('#latency').textContent !== '–'")
        words = "document.querySelector('#deliveries-chart svg').getAttribute('aria-label')"
        await tab.until(f"/at most [1-9]/.test({words})")
        before = await tab.evaluate("document.querySelector('#deliveries-chart .line').getAttribute('d')")
        await tab.until(f"document.querySelector('#deliveries-chart .line').getAttribute('d') !== {json.dumps(before)}")
        await tab.click("#pause")
        sqlite_application.tag("late", "comes while it is paused")
        await tab.until("document.querySelector('#pause').textContent === 'Resume (1 new)'")
        assert not await tab.evaluate(shows("comes while it is paused"))
        await tab.click("#pause")
        await tab.until(shows("comes while it is paused"))


async def test_suggestions_are_drawn_once_per_frame(sqlite_application: Application) -> None:
    async with console(sqlite_application) as (tab, _):
        await tab.evaluate(
            "window.drawn = 0; window.framesSeen = 0;"
            " new MutationObserver((records) => window.drawn += records.length)"
            ".observe(document.querySelector('#conversations'), { childList: true });"
            " (function turn() { window.framesSeen += 1; requestAnimationFrame(turn) })()"
        )
        with sqlite_application.engine.begin() as connection:
            connection.execute(
                mapping.MESSAGES.insert(),
                [{**MESSAGE, "id": f"m{number}", "conversation_id": f"c{number}"} for number in range(1000)],
            )
        await tab.until("document.querySelector('#count').textContent.startsWith('1,000 received')")
        await tab.until("document.querySelector('#conversations option').value === 'c999'")
        drawn, frames = await tab.evaluate("[window.drawn, window.framesSeen]")
        assert 0 < drawn <= frames
