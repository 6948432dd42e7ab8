"""How many events a producer appends, and when: one rule for every measured server, independent of clock and pipe.

Each producer receives the number of events that all readers have (``Progress``). So a server that only fills its own
buffers is not faster.
"""

import argparse
import struct
from typing import Final, Self

from attrs import define, frozen

_RECORD: Final = struct.Struct("=Q")
READ_BYTES: Final = 512 * _RECORD.size


@frozen(kw_only=True)
class Pace:
    """A closed loop: ``least`` to ``most`` events at once, and at most ``window`` events that not all readers have.

    ``rate`` above 0: an open loop instead, with ``rate`` events a second even if clients fall behind. ``alone``: a
    batch waits until the previous one was written to all writable sockets, so that each batch has a write of its own.
    """

    name: str
    least: int = 1
    most: int = 1
    window: int = 64
    rate: int = 0
    alone: bool = False

    def due(self, produced: int, reached: int, elapsed_s: float) -> int:
        """Return how many events to append now."""
        if self.rate:
            return max(0, int(elapsed_s * self.rate) - produced)
        room = self.window - (produced - reached)
        return 0 if room < self.least else min(room, self.most)

    def arguments(self) -> list[str]:
        """Return the command-line options without ``--alone``, which always holds for ``limit.c``."""
        named = {"least": self.least, "most": self.most, "window": self.window, "rate": self.rate}
        return [word for name, value in named.items() for word in (f"--{name}", str(value))]

    @classmethod
    def parser(cls, description: str | None) -> argparse.ArgumentParser:
        """Return a parser of these options, to which others can be added."""
        parser = argparse.ArgumentParser(description=description)
        for name, default in (("least", 1), ("most", 1), ("window", 64), ("rate", 0)):
            parser.add_argument(f"--{name}", type=int, default=default)
        parser.add_argument("--alone", action="store_true")
        return parser

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """Return the pace of the options."""
        return cls(
            name="",
            least=arguments.least,
            most=arguments.most,
            window=arguments.window,
            rate=arguments.rate,
            alone=arguments.alone,
        )


STRICT: Final = Pace(name="one event a write", alone=True)
NATURAL: Final = Pace(name="two events in flight", most=2, window=2)
BURSTS: Final = Pace(name="bursts of 50", least=50, most=50, window=200, alone=True)


def at_rate(events_per_s: int) -> Pace:
    """Return a pace of ``events_per_s`` events a second."""
    return Pace(name=f"{events_per_s} events/s", rate=events_per_s)


@define
class Progress:
    """The reports of the load client: how many events all readers have, and whether it has begun and ended."""

    reached: int = 0
    begun: bool = False
    ended: bool = False

    def update(self, data: bytes) -> None:
        """Process data from the pipe: complete records, because they are written atomically; empty at its end."""
        if not data:
            self.ended = True
            return
        (self.reached,) = _RECORD.unpack(data[-_RECORD.size :])
        self.begun = True
