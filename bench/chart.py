"""Line charts with logarithmic axes, as SVG text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from attrs import field, frozen

WIDTH: Final = 440
HEIGHT: Final = 380
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 110
SWATCH: Final = 18
STEPS: Final = (1, 2, 5, 10)
"""The ticks within a decade; the last one is the first of the next decade."""
DECADE: Final = 10
FONT: Final = 'font-family="sans-serif"'

Point = tuple[float, float]


@frozen
class Line:
    """Points (x, y) above 0 in the order of x. ``colour``: the same for the same thing in each chart."""

    colour: str
    points: Sequence[Point]


@frozen(kw_only=True)
class Panel:
    """One chart: lines by name."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Line] = field(factory=dict)


def svg(panels: Sequence[Panel]) -> str:
    """Draw charts side by side, as a document."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-size="11" {FONT}>',
        f'<rect width="{width}" height="{HEIGHT}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * WIDTH} 0)">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


@frozen
class _Axis:
    """Maps values to coordinates on a logarithmic scale between two ticks."""

    ticks: Sequence[float]
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        steps = [float(step * DECADE**power) for power in range(first, last + 1) for step in STEPS[:-1]]
        least = max((step for step in steps if step <= min(values)), default=steps[0])
        most = next((step for step in steps if step >= max(values) and step > least), steps[-1])
        return cls([step for step in steps if least <= step <= most], start, end)

    def place(self, value: float) -> float:
        least, most = self.ticks[0], self.ticks[-1]
        share = math.log(value / least) / math.log(most / least)
        return self.start + share * (self.end - self.start)


def _panel(panel: Panel) -> Iterator[str]:
    points = [point for line in panel.lines.values() for point in line.points]
    x_axis = _Axis.over([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y_axis = _Axis.over([y for _, y in points], HEIGHT - BOTTOM, TOP)
    yield _text(WIDTH / 2, 18, panel.title, anchor="middle", more='font-weight="bold"')
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 32, panel.x_label, anchor="middle")
    yield _text(LEFT - 55, TOP - 10, panel.y_label)
    for tick in x_axis.ticks:
        at = x_axis.place(tick)
        yield _line(at, TOP, at, HEIGHT - BOTTOM)
        yield _text(at, HEIGHT - BOTTOM + 15, _short(tick), anchor="middle")
    for tick in y_axis.ticks:
        at = y_axis.place(tick)
        yield _line(LEFT, at, WIDTH - RIGHT, at)
        yield _text(LEFT - 6, at + 4, _short(tick), anchor="end")
    for number, (name, line) in enumerate(panel.lines.items()):
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
        yield from _drawn(places, line.colour)
        below = HEIGHT - BOTTOM + 52 + 14 * number
        yield from _drawn([(LEFT, below - 4), (LEFT + SWATCH, below - 4)], line.colour)
        yield _text(LEFT + SWATCH + 10, below, name)


def _drawn(places: Sequence[Point], colour: str) -> Iterator[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in places:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
