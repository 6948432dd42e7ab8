"""Makes the pictures of the console in ``docs/images``, with the demo's inbox (``make screenshots``)."""

import subprocess
import time
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Page

from tests.console.browser import chromium
from tests.processes import AIRY_TRIO

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
SETTLED_S: Final = 45
"""Time until the charts and lists have data."""
PICTURES: Final[dict[str, dict[str, Any]]] = {
    "console-light": {"viewport": {"width": 1280, "height": 820}, "color_scheme": "light"},
    "console-dark": {"viewport": {"width": 1280, "height": 820}, "color_scheme": "dark"},
    "console-phone": {"viewport": {"width": 360, "height": 780}, "color_scheme": "light", "device_scale_factor": 2},
}


def main() -> None:
    """Run the demo, open its console in three sizes and colours, and take the pictures after a while."""
    with subprocess.Popen([*AIRY_TRIO, "demo"], stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            url = next(line.split()[1] for line in demo.stdout if line.startswith("console"))
            with chromium() as browser:
                pages = {name: browser.new_page(**options) for name, options in PICTURES.items()}
                for page in pages.values():
                    page.goto(url)
                _read(demo.stdout, SETTLED_S)
                for name, page in pages.items():
                    _open_one(page, narrow=name.endswith("phone"))
                    page.screenshot(path=IMAGES / f"{name}.png")
        finally:
            demo.terminate()


def _read(lines: Any, seconds: float) -> None:  # noqa: ANN401 - a pipe
    """Read the output of the demo, so that it does not block."""
    ends_at = time.monotonic() + seconds
    for _line in lines:
        if time.monotonic() > ends_at:
            return


def _open_one(page: Page, *, narrow: bool) -> None:
    if not narrow:
        page.click("#pause")
        page.locator("#log li[data-kind=message] summary").nth(2).click()
        page.locator("#log").evaluate("(log) => log.scrollTo(0, 0)")
    page.mouse.move(0, 0)


if __name__ == "__main__":
    main()
