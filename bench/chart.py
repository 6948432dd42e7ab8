"""Line charts with logarithmic axes as SVG text. Knows points and labels, and nothing of what they mean."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from attrs import field, frozen

WIDTH: Final = 440
HEIGHT: Final = 380
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 110
COLOURS: Final = ("#7a7a7a", "#0b6e4f", "#5fb49c", "#c8553d", "#3d5a80", "#b08900")
DECADE: Final = 10
FONT: Final = 'font-family="sans-serif"'

Point = tuple[float, float]


@frozen(kw_only=True)
class Panel:
    """One chart: lines by name, each of points (x, y) above 0 in the order of x."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[Point]] = field(factory=dict)


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
    """Values to places, by the logarithm, between two whole powers of ten."""

    least: int
    most: int
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        least, most = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return cls(least, max(most, least + 1), start, end)

    def place(self, value: float) -> float:
        share = (math.log10(value) - self.least) / (self.most - self.least)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        return [float(DECADE**power) for power in range(self.least, self.most + 1)]


def _panel(panel: Panel) -> Iterator[str]:
    points = [point for line in panel.lines.values() for point in line]
    x_axis = _Axis.over([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y_axis = _Axis.over([y for _, y in points], HEIGHT - BOTTOM, TOP)
    yield _text(WIDTH / 2, 18, panel.title, anchor="middle", more='font-weight="bold"')
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 32, panel.x_label, anchor="middle")
    yield _text(LEFT - 55, TOP - 10, panel.y_label)
    for tick in x_axis.ticks():
        at = x_axis.place(tick)
        yield _line(at, TOP, at, HEIGHT - BOTTOM)
        yield _text(at, HEIGHT - BOTTOM + 15, _short(tick), anchor="middle")
    for tick in y_axis.ticks():
        at = y_axis.place(tick)
        yield _line(LEFT, at, WIDTH - RIGHT, at)
        yield _text(LEFT - 6, at + 4, _short(tick), anchor="end")
    for number, (name, line) in enumerate(panel.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        yield _text(LEFT, HEIGHT - BOTTOM + 52 + 14 * number, name, more=f'fill="{colour}"')


def _text(x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
