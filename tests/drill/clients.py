"""A client that loses its connection again and again, and goes on by ``last-event-id`` on whichever node listens."""

import random

import trio
from attrs import define, field

from airy_trio.testing.client import Closed, Rejected, connect
from tests.drill.nodes import Nodes, listens
from tests.e2e.route import HOST, Event, event_of


@define
class Resuming:
    """What one client has received, in the order in which it came. ``position``: of the last, or where it started."""

    nodes: Nodes
    random: random.Random
    position: str = ""
    events: list[Event] = field(factory=list)
    resumes: int = 0
    refused: int = 0
    ended: bool = False

    async def receive(self, at_most: int | None = None) -> None:
        """Connect, subscribe after what it has, and read: to the end of the drill, so many events, or until cut off.

        AssertionError where the server does not go on exactly where it stopped.
        """
        node = self.random.choice(await self.nodes.wait(listens))
        try:
            async with await connect(HOST, node.port) as client:
                # The first time it may come late: what has been recorded by then is not what it waits for.
                asked = ("last-event-id", self.position) if self.position else ("replay", "none")
                receipt = await client.subscribe(headers=[asked])
                assert receipt.command == "RECEIPT", receipt
                position = receipt.get("position")
                if self.position:
                    assert (receipt.get("resume"), position) == ("resumed", self.position), receipt
                    self.resumes += 1
                assert position is not None
                self.position = position
                while not self.ended and (at_most is None or at_most > 0):
                    self._take(event_of(await client.receive()))
                    at_most = None if at_most is None else at_most - 1
        except (OSError, Closed, Rejected, trio.BrokenResourceError):
            self.refused += 1

    def _take(self, event: Event) -> None:
        epoch, _, offset = self.position.rpartition("-")
        assert (event.epoch, event.offset) == (epoch, int(offset) + 1), f"{event} after {self.position}"
        self.position = event.position
        self.events.append(event)
        self.ended = event.is_end
