"""The look of the console: the axes of its charts, and its buttons in both themes."""

import json
import re

import pytest

from airy_trio.admin.endpoints import CONSOLE
from tests.application import Application
from tests.console.browser import Tab
from tests.console.serving import FOCUS_RING, WITHOUT_BORDER, console

UNITS = {"deliveries": r"\d/s", "latency": r"\d (ms|s|min)", "lag": r"\d (ms|s|min)", "connected": r"\d connections"}
NOT_OUR_WORDS = r"\b(?:who|whom|whoever|somebody|nobody|anybody|everybody|told|tells?|anew|beside|rung|hungry)\b"
DRAW = """async (samples) => {
  const { Chart } = await import("/console/charts.js");
  const place = document.createElement("div");
  document.body.append(place);
  const made = new Chart(place, { lines: ["a", "b"], least: 1, label: "Test", format: (value) => `${value} ms` });
  samples.forEach(([at, ...values]) => made.add(at, values));
  return [...place.querySelectorAll(".line")].map((line) => line.getAttribute("d").replace(/ [\\d.]+/g, ""));
}"""
"""Draws samples, each a time and two values; returns where the lines have points, from 0 to 240."""

PLACES = """[...document.querySelectorAll("CHART .tick")].map((tick, index) => {
  const text = document.createRange();
  text.selectNodeContents(tick);
  const { left, width } = text.getBoundingClientRect();
  const chart = document.querySelector("CHART").getBoundingClientRect();
  return (left + width * index / 2 - chart.left) / chart.width;
})"""
"""The places of the times on the axis: left end of the first, middle of the second, right end of the third."""
POINT = """(() => {
  const { left, width } = document.body.lastElementChild.getBoundingClientRect();
  document.body.lastElementChild.dispatchEvent(new PointerEvent("pointermove", { clientX: left + width * SHARE }));
})()"""
TIP = """(() => {
  const tip = document.body.lastElementChild.querySelector(".tip");
  return tip.hidden ? null : tip.textContent;
})()"""


async def drawn(tab: Tab, *samples: tuple[int, float | None, float | None]) -> list[str]:
    return await tab.evaluate(f"({DRAW})({json.dumps(samples)})")  # type: ignore[no-any-return]


async def test_charts_have_a_time_axis_and_a_unit(sqlite_application: Application) -> None:
    async with console(sqlite_application) as (tab, _):
        for name, unit in UNITS.items():
            chart = f"document.querySelector('#{name}-chart')"
            await tab.until(f"{chart}.querySelector('.top').textContent !== ''")
            assert re.search(unit, await tab.evaluate(f"{chart}.querySelector('.top').innerText"))
            ticks = await tab.evaluate(f"[...{chart}.querySelectorAll('.tick')].map((tick) => tick.innerText)")
            assert ticks == ["−2 min", "−1 min", "now"]
            left, middle, right = await tab.evaluate(PLACES.replace("CHART", f"#{name}-chart"))
            assert left < 0.1
            assert abs(middle - 0.5) < 0.01
            assert right > 0.9
        assert await tab.evaluate("document.querySelector('#latency-chart .legend').textContent") == "p50p99"


async def test_samples_are_drawn_at_their_time(sqlite_application: Application) -> None:
    async with console(sqlite_application) as (tab, _):
        assert await drawn(tab, (0, 1, None), (30_000, 1, None), (31_000, 1, 1), (90_000, 1, 1)) == [
            "M60.0M120.0L122.0M240.0", "M122.0M240.0"
        ]  # fmt: skip
        assert await drawn(tab, (0, 1, 1), (120_001, 1, 1)) == ["M240.0", "M240.0"], "older than the axis"
        assert await drawn(tab, (0, 1, 2), (60_000, 3, None), (61_000, 4, 5)) != []
        await tab.evaluate(POINT.replace("SHARE", str(1 - 1 / 120)))
        assert await tab.evaluate(TIP) == "a 3 ms · b none, 1 s ago"
        await tab.evaluate(POINT.replace("SHARE", "0.75"))  # no sample is near
        assert await tab.evaluate(TIP) is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_buttons_look_like_buttons(sqlite_application: Application, scheme: str) -> None:
    async with console(sqlite_application, color_scheme=scheme, reduced_motion="reduce") as (tab, _):
        sqlite_application.message()
        await tab.until("document.querySelector('#log summary') !== null")
        await tab.click("#log summary")
        await tab.evaluate("document.querySelectorAll('[hidden]').forEach((one) => one.hidden = false)")
        assert await tab.evaluate(WITHOUT_BORDER) == []
        buttons = await tab.evaluate("[...document.querySelectorAll('button:not(.hidden)')].map(({id}) => id)")
        assert {"retry", "theme", "pause", "clear", "more", ""} <= set(buttons)
        for button in ("#theme", "#pause", "#clear", ".actions button", "#token-form button"):
            look = f"getComputedStyle(document.querySelector({json.dumps(button)})).backgroundColor"
            await tab.do(lambda page: page.mouse.move(0, 0))
            before = await tab.evaluate(look)
            await tab.do(lambda page, button=button: page.locator(button).first.hover())  # type: ignore[misc]
            assert await tab.evaluate(look) != before, button
            await tab.press("Shift")  # from now on the keyboard moves the focus
            await tab.evaluate(f"document.querySelector({json.dumps(button)}).focus()")
            assert await tab.evaluate(FOCUS_RING), button


def test_page_names_the_actors() -> None:
    """The console uses the words of the docs and the log, such as client, server and recorder, for every actor."""
    for path in (*CONSOLE.glob("*.js"), CONSOLE / "console.html", CONSOLE / "console.css"):
        assert re.findall(NOT_OUR_WORDS, path.read_text(), re.IGNORECASE) == [], path.name
