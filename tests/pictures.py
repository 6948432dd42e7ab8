"""Draw the picture of the README from a real run: a client loses its connection, reconnects, and catches up.

    make pictures

The run has a server, an application that commits a row every 100 ms, and a client over a real WebSocket. The times are
measured.
"""

import sys
import tempfile
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

import trio
from attrs import field, frozen

from airy_trio import app
from airy_trio.testing.client import StompClient, connect
from tests.application import Application, application

IMAGE: Final = Path(__file__).parents[1] / "docs" / "images" / "catches-up.svg"
ROWS: Final = 20
EVERY_S: Final = 0.1
CUT_AFTER: Final = 6
"""The number of events after which the client's connection is cut."""
MISSED_ROWS: Final = 9
"""The number of rows that are committed before it reconnects."""
TIMEOUT_S: Final = 30.0

WIDTH, HEIGHT = 960, 250
LEFT, RIGHT = 190, 30
APPLICATION_Y, CLIENT_Y = 78, 168
INK, SOFT, TEAL = "#0f172a", "#475569", "#0f766e"


@frozen(kw_only=True)
class Run:
    """A run, in seconds since the first commit: when each row was committed, and when its event was received."""

    committed: dict[str, float] = field(factory=dict)
    received: list[tuple[str, float]] = field(factory=list)
    cut_s: float = 0.0
    back_s: float = 0.0
    resume: str = ""

    @property
    def missed(self) -> list[float]:
        """The times at which the client received the events that it had missed."""
        return [at for id_, at in self.received if at >= self.back_s and self.committed[id_] < self.back_s]


async def run(made: Application) -> Run:
    """Run everything. Fails unless each event is received once, in the order of the commits."""
    settings = made.migrate("[listener]\nport = 0\n")
    committed: dict[str, float] = {}
    received: list[tuple[str, float]] = []
    back = trio.Event()
    async with trio.open_nursery() as nursery:
        address: app.Address = await nursery.start(app.serve, settings)
        began = trio.current_time()

        async def write() -> None:
            for number in range(ROWS):
                await trio.sleep_until(began + number * EVERY_S)
                await trio.to_thread.run_sync(made.tag, f"t{number}")
                committed[f"t{number}"] = trio.current_time() - began
                if number + 1 == CUT_AFTER + MISSED_ROWS:
                    back.set()

        async def receive(client: StompClient, until: int) -> str:
            position = ""
            while len(received) < until:
                message = await client.receive()
                position = message.get("message-id") or ""
                received.append((_id_of(message.body), trio.current_time() - began))
            return position

        first = await connect(address.host, address.port, address.path)
        await first.subscribe("/events", headers=[("replay", "none")])
        began = trio.current_time() + EVERY_S
        nursery.start_soon(write)
        position = await receive(first, CUT_AFTER)
        await trio.aclose_forcefully(first.stream)  # without a Close frame
        cut_s = trio.current_time() - began
        await back.wait()
        async with await connect(address.host, address.port, address.path) as second:
            back_s = trio.current_time() - began
            receipt = await second.subscribe("/events", headers=[("last-event-id", position)])
            with trio.fail_after(TIMEOUT_S):
                await receive(second, ROWS)
        nursery.cancel_scope.cancel()
    assert [id_ for id_, _ in received] == list(committed), "an event is missing, or came twice"
    return Run(committed=committed, received=received, cut_s=cut_s, back_s=back_s, resume=receipt.get("resume") or "")


def _id_of(body: bytes) -> str:
    return body.decode().partition('"id":"')[2].partition('"')[0]


def svg(happened: Run) -> str:
    """Draw a run: a dot for each commit, a dot for each event, and the time without a connection."""
    end_s = max(happened.committed.values()) + EVERY_S

    def x(at_s: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * max(0.0, at_s) / end_s, 1)

    caught_up_ms = (max(happened.missed) - happened.back_s) * 1000
    count = len(happened.missed)
    title = (
        f"A client is cut off for {happened.back_s - happened.cut_s:.1f} s. It returns with its last position and has "
        f"received the {count} events that it missed after {caught_up_ms:.0f} ms, in order, none twice."
    )
    cut, back = x(happened.cut_s), x(happened.back_s)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title">',
        '<g font-family="ui-sans-serif, system-ui, sans-serif" font-size="14">',
        f'<title id="title">{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#f8fafc"/>',
        f'<rect x="{cut}" y="{CLIENT_Y - 22}" width="{back - cut:.1f}" height="44" rx="6" fill="#fee2e2"/>',
        f'<text x="{(cut + back) / 2:.1f}" y="{CLIENT_Y + 5}" text-anchor="middle" fill="#991b1b">no connection</text>',
        _text(24, APPLICATION_Y - 4, "your application", INK, 'font-weight="600"'),
        _text(24, APPLICATION_Y + 15, "commits rows", SOFT, 'font-size="13"'),
        _text(24, CLIENT_Y - 4, "a client", INK, 'font-weight="600"'),
        _text(24, CLIENT_Y + 15, "receives events", SOFT, 'font-size="13"'),
        *(
            f'<line x1="{x(happened.committed[id_])}" y1="{APPLICATION_Y + 7}" x2="{x(at)}" y2="{CLIENT_Y - 7}" '
            f'stroke="#99f6e4" stroke-width="1.5"/>'
            for id_, at in happened.received
        ),
        *(
            f'<circle cx="{x(at)}" cy="{APPLICATION_Y}" r="6" fill="#fff" stroke="{TEAL}" stroke-width="2"/>'
            for at in happened.committed.values()
        ),
        *(f'<circle cx="{x(at)}" cy="{CLIENT_Y}" r="6" fill="{TEAL}"/>' for _, at in happened.received),
        _text(cut, CLIENT_Y + 42, "cut off", SOFT, 'text-anchor="middle" font-size="13"'),
        _text(
            back,
            CLIENT_Y + 42,
            f"back, with last-event-id: {count} missed events in {caught_up_ms:.0f} ms",
            SOFT,
            'text-anchor="middle" font-size="13"',
        ),
        _text(LEFT, 34, f"{end_s:.1f} s of a real run", SOFT, 'font-size="13"'),
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, words: str, colour: str, more: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" {more}>{escape(words)}</text>'


def main() -> None:
    """Run everything, and write the picture."""
    with tempfile.TemporaryDirectory() as folder, application(f"sqlite:///{folder}/inbox.db", create=True) as made:
        happened = trio.run(run, made)
    IMAGE.write_text(svg(happened))
    sys.stdout.write(f"{IMAGE}: {len(happened.missed)} missed events after the return\n")


if __name__ == "__main__":
    main()
