"""One client and its subscriptions: who may write to it, where each cursor stands, and how much it may have in flight.

ClientState only: nothing is read, framed or sent here. Where a subscription starts is decided in ``replay``.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Final

import trio
from attrs import define, field, frozen

from airy_trio.auth import ANONYMOUS, User
from airy_trio.delivery.disconnects import DisconnectReason
from airy_trio.log.position import Position
from airy_trio.log.store import StoredEvent
from airy_trio.log.tail import View
from airy_trio.options import at_least
from airy_trio.stomp.connection import Connection
from airy_trio.stomp.requests import AckMode
from airy_trio.websocket.admission import Visitor
from airy_trio.websocket.stream import FramedStream


@frozen(kw_only=True)
class ReplayOptions:
    """The recent window, for clients that do not tell their position (settings, ``[replay]``)."""

    window_s: float = field(default=120, validator=at_least(0))
    events_max: int = field(default=1000, validator=at_least(1))


class ClientState(Enum):
    """Who may write events to a connection (architecture, "Delivery")."""

    CONNECTING = "connecting"
    """Nobody: CONNECTED has not been written."""
    LIVE = "live"
    """The fan-out, and the session in the same way."""
    BEHIND = "behind"
    """Its send task: it did not take a run at once, or its cursor stands before the tail."""
    CLOSING = "closing"
    """Nobody: the session says the farewell."""


LIVE: Final = ClientState.LIVE
BEHIND: Final = ClientState.BEHIND
"""As names of the module, for who asks at each delivery: an enum's attributes take longer to find."""


class Window:
    """What is in flight in one subscription with an ack mode, and what may still be sent: flow control, no more.

    The offsets in flight rise in the order of sending, with gaps where events are of other destinations. They are kept
    as plain numbers of eight octets: a client may let thousands wait in each of its subscriptions.
    """

    __slots__ = ("_cumulative", "_in_flight", "_prefetch")

    def __init__(self, mode: AckMode, prefetch: int) -> None:
        self._cumulative = mode is AckMode.CLIENT
        self._prefetch = prefetch
        self._in_flight = array("q")

    @property
    def room(self) -> int:
        """How many more events may be sent before the client acknowledges one."""
        return self._prefetch - len(self._in_flight)

    @property
    def oldest(self) -> int | None:
        """The offset of the first event in flight; None where none is."""
        return self._in_flight[0] if self._in_flight else None

    def sent(self, offsets: tuple[int, ...]) -> None:
        """Note events as in flight."""
        self._in_flight.extend(offsets)

    def acknowledge(self, offset: int) -> bool:
        """Take an acknowledgement: of this event, or in mode ``client`` of all up to it.

        False where nothing of that offset is in flight: unknown, or acknowledged before.
        """
        at = bisect_left(self._in_flight, offset)
        if at == len(self._in_flight) or self._in_flight[at] != offset:
            return False
        del self._in_flight[0 if self._cumulative else at : at + 1]
        return True


@define(eq=False)
class Subscription:
    """A cursor of one client into one view.

    ``number``: the client's count, which its ack ids begin with. ``prefix``: the octets that all its MESSAGE frames
    begin with. ``view``: of the destination, set when it is attached. ``position``: every event up to here was sent,
    is in ``owed``, or is not wanted. ``owed``: events that are sent before what follows the position. ``verdict``:
    the header line that the first MESSAGE still has to carry, else empty. ``window``: None where no acks are needed.
    ``live_after``: the newest offset when it began. ``started``: the RECEIPT was written. ``repeats``: it may be given
    what a neighbour took from the very same position: since its last run it has no past to be sent, is owed nothing,
    and needs no acks. ``retry_at``: not before this time (Trio's) is the store asked again; ``retries``: how often it
    was away, in a row.
    """

    client: "Client"
    number: int
    prefix: bytes
    position: Position
    view: View = field(init=False)
    window: Window | None = None
    live_after: int = 0
    owed: deque[StoredEvent] | tuple[()] = ()
    verdict: bytes = b""
    started: bool = False
    repeats: bool = False
    retries: int = 0
    retry_at: float = 0.0

    def owe(self, events: Iterable[StoredEvent]) -> None:
        """Let these be sent before what follows the position, after what is owed already."""
        owed = deque(self.owed)
        owed.extend(events)
        self.repeats = False
        self.owed = owed or ()  # an empty deque takes 600 bytes, in each of many thousand subscriptions

    def end(self) -> None:
        """Take nothing more that neighbours take: it is unsubscribed."""
        self.repeats = False

    @property
    def hungry(self) -> bool:
        """Whether there is something to send that the client has room for."""
        return (
            self.started
            and (self.view.last > self.position.offset or bool(self.owed))
            and (self.window is None or self.window.room > 0)
        )

    @property
    def shareable(self) -> bool:
        """Whether its frames are those of every subscription with the same prefix and position."""
        return self.window is None and not self.verdict and not self.owed


@define(eq=False)
class Client:
    """One connection's state; owned by its session.

    ``connection``: the STOMP side of it. ``number``: how many there were in this process when it came, itself
    included. ``begun_at``: when that was, in Trio's time. ``address``: where it comes from, as far as is known.
    ``peer``: the address that it is counted by, if any. ``visitor``: counts it and its subscriptions. ``stream``: its
    way out.
    ``user``: the name of the user, from CONNECT. ``connected``: CONNECT was accepted. ``scope``: the conversation; its
    deadline is that of CONNECT.
    ``occupied``: the session is busy with frames that came, so that the client's silence cannot be told from its own
    waiting.
    """

    connection: Connection
    number: int = 0
    begun_at: float = 0.0
    address: str | None = None
    peer: str | None = None
    visitor: Visitor | None = None
    stream: FramedStream = field(init=False)
    state: ClientState = ClientState.CONNECTING
    user: User = ANONYMOUS
    connected: bool = False
    farewell: DisconnectReason | None = None
    subscriptions: dict[int, Subscription] = field(factory=dict)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    wakened: trio.Event | None = None
    occupied: bool = False

    @property
    def session(self) -> str:
        """The name of the session, as in CONNECTED."""
        return self.connection.session

    def wake(self) -> None:
        """Let the send task of a client that is behind look again."""
        if self.wakened is not None:
            self.wakened.set()

    def dismiss(self, farewell: DisconnectReason) -> None:
        """End the conversation with this farewell; the first one wins. Never waits."""
        if self.farewell is None:
            self.farewell = farewell
        self.state = ClientState.CLOSING
        self.scope.cancel()
