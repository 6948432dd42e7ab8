"""The console of a whole server in this process, open in a real Chromium, and the colours of a page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from airy_trio import app
from tests.admin.serving import free_port, serving_all
from tests.application import Application
from tests.console.browser import Tab, browsing

TIMEOUT_S = 50.0
LIVE = "document.querySelector('#link').dataset.phase === 'live'"

_COLOURS = """(() => {
  const read = (text) => {  // "rgb(1, 2, 3)", or "color(srgb 0.1 0.2 0.3 / 0.4)" where colours were mixed
    const [r, g, b, alpha = 1] = text.match(/[\\d.]+(?:e-?\\d+)?/g).map(Number);
    return [...[r, g, b].map((one) => text.startsWith("color(") ? one : one / 255), alpha];
  };
  const over = ([r, g, b, alpha], below) => [r, g, b].map((one, i) => one * alpha + below[i] * (1 - alpha));
  const ground = (one) => one === null ? [1, 1, 1]
    : over(read(getComputedStyle(one).backgroundColor), ground(one.parentElement));
  const light = (colour) => colour
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (colour, below) => {
    const [a, b] = [light(over(read(colour), below)), light(below)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const visible = (selector) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility());
"""
TOO_FAINT = f"""{_COLOURS}
  return visible("body *:not(script)")
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((one) => [one.textContent.trim().slice(0, 30), contrast(getComputedStyle(one).color, ground(one))])
    .flatMap(([text, ratio]) => ratio < 4.5 ? [`${{text}}: ${{ratio.toFixed(2)}}`] : []);
}})()"""
"""Texts with less contrast to the background than WCAG 2.2 AA requires (1.4.3)."""
WITHOUT_BORDER = f"""{_COLOURS}
  return visible("button:not(.hidden), input:not([type=checkbox]), .types span").flatMap((one) => {{
    const {{ borderTopColor, borderTopWidth, borderTopStyle }} = getComputedStyle(one);
    const ratio = contrast(borderTopColor, ground(one.parentElement));
    const drawn = borderTopStyle === "solid" && parseFloat(borderTopWidth) >= 1 && ratio >= 3;
    return drawn ? [] : [`${{one.id || one.textContent}}: ${{borderTopWidth}} ${{ratio.toFixed(2)}}`];
  }});
}})()"""
"""Buttons and fields without a border of sufficient contrast to their surroundings (WCAG 2.2 AA, 1.4.11)."""
FOCUS_RING = f"""{_COLOURS}
  const {{ outlineStyle, outlineWidth, outlineColor }} = getComputedStyle(document.activeElement);
  const ratio = contrast(outlineColor, ground(document.activeElement.parentElement));
  return outlineStyle === "solid" && parseFloat(outlineWidth) >= 2 && ratio >= 3;
}})()"""
"""Whether the element with the focus has a visible ring (WCAG 2.2, 1.4.11 and 2.4.13)."""


def settings_text(more: str = "") -> str:
    return f"[listener]\nport = {free_port()}\ndrain_s = 0.2\n[admin]\nport = {free_port()}\n{more}"


@asynccontextmanager
async def console(
    application: Application,
    more: str = "",
    *,
    wait: bool = True,
    **options: Any,  # noqa: ANN401 - Playwright's
) -> AsyncIterator[tuple[Tab, app.Address]]:
    """Open the console of a server in this process. ``wait``: until it is live."""
    settings = application.migrate(settings_text(more))
    with trio.fail_after(TIMEOUT_S):
        async with serving_all(settings) as (address, _), browsing(**options) as tab:
            await tab.open(f"http://127.0.0.1:{settings.admin.port}/")
            if wait:
                await tab.until(LIVE)
            yield tab, address
