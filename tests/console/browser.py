"""A real Chromium, driven from a thread, because Playwright's blocking interface does not support Trio."""

import queue
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pytest
import trio
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 20_000
POLL_MS = 40
CLOSE_TIMEOUT_S = 20
Result = TypeVar("Result")


def executable() -> str:
    """Return the path of the browser, or skip the test if there is none."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: what a page does in a browser cannot be tested (Debian: apt-get install chromium)")
    return found


class Thread:
    """Runs calls one by one in one thread, because Playwright's objects belong to the thread that made them."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[], Result]) -> Result:
        """Run a function in the thread; return or raise its outcome."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append((work(), None))
            except Exception as error:  # noqa: BLE001 - it is raised where it was called
                outcome.append((None, error))
            token.run_sync_soon(done.set)

        self._calls.put(run)
        with trio.CancelScope(shield=True):  # it has its own time limit
            await done.wait()
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def end(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser, for one thread."""
    path = executable()
    with sync_playwright() as playwright:
        # As root in a container no sandbox is available. The browser opens only our own pages.
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield made
        finally:
            made.close()


@asynccontextmanager
async def browsing(**options: Any) -> AsyncIterator["Tab"]:  # noqa: ANN401 - Playwright's
    """Open one page in its own browser; it must report no errors. ``options``: of Playwright's context."""
    executable()
    thread = Thread()
    faults: list[str] = []

    def start() -> tuple[Any, Page]:
        manager = chromium()
        browser = manager.__enter__()
        page = browser.new_page(**options)
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        return manager, page

    manager, page = await thread.call(start)
    try:
        yield Tab(thread, page, faults)
        assert faults == []
    finally:
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await thread.call(lambda: manager.__exit__(None, None, None))
        thread.end()


class Tab:
    """A page, for tests that run in Trio. ``faults``: uncaught exceptions of the page."""

    def __init__(self, thread: Thread, page: Page, faults: list[str]) -> None:
        self._thread = thread
        self._page = page
        self.faults = faults

    async def do(self, work: Callable[[Page], Result]) -> Result:
        """Run a function with the page."""
        return await self._thread.call(lambda: work(self._page))

    async def open(self, url: str) -> None:
        await self.do(lambda page: page.goto(url))

    async def evaluate(self, script: str) -> Any:  # noqa: ANN401 - the result of the script
        return await self.do(lambda page: page.evaluate(script))

    async def until(self, script: str) -> None:
        """Wait until a JavaScript expression is true.

        Asked through the browser: Playwright's own waiting evaluates a text in the page, which its policy forbids.
        """

        def wait(page: Page) -> None:
            ends_at = time.monotonic() + PATIENCE_MS / 1000
            while not page.evaluate(script):
                if time.monotonic() > ends_at:
                    raise AssertionError(f"not within {PATIENCE_MS} ms: {script}\n{page.inner_text('body')[:2000]}")
                page.wait_for_timeout(POLL_MS)

        await self.do(wait)

    async def click(self, selector: str) -> None:
        await self.do(lambda page: page.locator(selector).first.click())

    async def fill(self, selector: str, text: str) -> None:
        def fill(page: Page) -> None:
            page.locator(selector).fill(text)
            page.locator(selector).press("Enter")

        await self.do(fill)

    async def press(self, *keys: str) -> None:
        def press(page: Page) -> None:
            for key in keys:
                page.keyboard.press(key)

        await self.do(press)
