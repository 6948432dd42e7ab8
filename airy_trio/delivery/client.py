"""The state of one client: a cursor for each subscription, and which task may write events to the connection.

A client is a cursor into the log, not a queue: each subscription has the position of the last event that was written.
The state of the connection names the only writer of events:

    state        writer of events                     left when
    ----------   ----------------------------------   ------------------------------------------------------------
    CONNECTING   none                                 CONNECTED was written: LIVE
    LIVE         the fan-out, and the session after   the socket does not take a batch at once, something is pending,
                 SUBSCRIBE and ACK (both through      or a position is older than the tail: BEHIND
                 ``FanOut.serve``, which never waits)
    BEHIND       the send task of this client, for    nothing is pending and no subscription has work: LIVE
                 all of its subscriptions in turn
    CLOSING      none; the session closes             never

``disconnect`` leads to CLOSING from every state. The state belongs to the connection rather than to a subscription:
two writers on one socket would need a flag for each subscription and a lock for each event.

A subscription is a cursor with up to two phases. While ``replay`` is set, it receives a current state, a recent window,
or both, up to a fixed position. Only the send task reads these, in pages. After that, or from the beginning if
``replay`` is None, the subscription receives everything after its position.

A subscription *has work* if it is started, its ack window has room, and there is something to send: its replay has not
ended, or its view has an event that was not sent. A full ack window does not make a client BEHIND: the next ACK gives
the subscription work again, and serves it.

These invariants hold; ``tests/delivery/test_invariants.py`` lists the tests and the mutants for each.

1.  A transport takes a batch whole or not at all, and the cursor advances if, and only if, the batch was taken.
2.  The part of a batch that the socket did not take at once is *pending*: at most one batch for each client. Nothing
    else is written before it has left.
3.  A task that waits while writing holds the stream's lock, and it waits only while something is pending. So the
    fan-out has to check ``pending``, not the lock.
4.  A client with something pending, or with work, never stays LIVE: the task that caused it hands the client over to
    the send tasks (``Senders.hand_over``).
5.  The fan-out and a send task never both write to one client: there is no checkpoint between the check that a client
    has caught up and its step back to LIVE.
6.  A view holds exactly those offsets of its destination that the tail holds. The tail can serve a position if, and
    only if, it is not before ``view.evicted``. (The beginning of the tail would be the wrong limit: on a quiet
    destination a cursor stays old although nothing is missing after it.)
7.  After every wait the send task checks again, under the lock, whether the subscription still exists, so nothing
    follows the RECEIPT of its UNSUBSCRIBE.
8.  SUBSCRIBE fixes the position, then writes the RECEIPT, then starts the subscription and serves it. The RECEIPT
    comes before the first MESSAGE, and no event is lost in between.
9.  Nothing follows a Close frame: the stream is marked as closing before its lock is waited for.
10. The first disconnect reason wins, and ``disconnect`` never waits. Only the session closes the transport.
11. An exception while one client is served disconnects that client and no other: in the fan-out, the timer wheel, the
    send tasks and the session.
12. Events of one subscription are sent in order. Between two subscriptions of a connection no order is promised.
"""

from array import array
from bisect import bisect_right
from enum import Enum
from typing import Final

import trio
from attrs import define, field, frozen

from airy_trio.auth.users import ANONYMOUS, User
from airy_trio.delivery.disconnects import DisconnectReason
from airy_trio.delivery.framing import Framing
from airy_trio.log.reads import Replay
from airy_trio.log.store import Position
from airy_trio.log.tail import View
from airy_trio.options import at_least
from airy_trio.retry import Backoff
from airy_trio.stomp.frames import AckMode
from airy_trio.websocket.admission import ConnectionSlot
from airy_trio.websocket.stream import FramedStream


@frozen(kw_only=True)
class ReplayOptions:
    """The recent window, for clients that do not send a position (settings, ``[replay]``).

    ``events_max``: counted over the whole log, not one destination; 0: no limit.
    """

    window_s: float = field(default=120, validator=at_least(0))
    events_max: int = field(default=0, validator=at_least(0))


class ClientState(Enum):
    """Which task may write events to a connection (the table at the top of this module)."""

    CONNECTING = "connecting"
    LIVE = "live"
    BEHIND = "behind"
    CLOSING = "closing"


# Aliases for the code that runs at each delivery: looking up an attribute of an enum is slower.
LIVE: Final = ClientState.LIVE
BEHIND: Final = ClientState.BEHIND


@define(eq=False)
class Client:
    """The state of one connection; owned by its session.

    ``framing``: its protocol (``delivery.framing``). ``stream``: writes to the socket. ``number``: counts the
    connections of this process, in the order in which they were accepted. ``begun_at``: in Trio's time. ``slot``:
    counts the connection and its subscriptions, and has the client's address. ``user``: from CONNECT. ``connected``:
    CONNECT was accepted, at any time. ``reason``: why the connection ends, once that is decided. ``scope``: cancelled
    to end the conversation; its deadline is that of CONNECT.
    """

    framing: Framing
    stream: FramedStream
    slot: ConnectionSlot
    number: int = 0
    begun_at: float = 0.0
    state: ClientState = ClientState.CONNECTING
    user: User = ANONYMOUS
    connected: bool = False
    reason: DisconnectReason | None = None
    subscriptions: "dict[int, Subscription]" = field(factory=dict)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    _wake_up: trio.Event | None = field(default=None, init=False)

    @property
    def session(self) -> str:
        """The name of the session, as in CONNECTED."""
        return self.framing.session

    def go_live(self) -> bool:
        """Step from CONNECTING to LIVE after CONNECTED was written; False if the client is already being disconnected.

        Lifts the limit on what may be read before it.
        """
        self.connected = True
        if self.state is not ClientState.CONNECTING:
            return False
        self.state = LIVE
        self.stream.limit(None)
        return True

    def fall_behind(self) -> bool:
        """Step from LIVE to BEHIND; False, and nothing changes, in any other state."""
        if self.state is not LIVE:
            return False
        self.state = BEHIND
        return True

    def catch_up(self) -> bool:
        """Step from BEHIND to LIVE, without a checkpoint, if nothing is pending and no subscription has work."""
        if self.state is not BEHIND or self.stream.transport.pending:
            return False
        if any(subscription.has_work for subscription in self.subscriptions.values()):
            return False
        self._wake_up = None
        self.state = LIVE
        return True

    def expect_wake_up(self) -> trio.Event:
        """Return a new event that the next ``wake`` sets. For the send task, before it looks for work."""
        self._wake_up = trio.Event()
        return self._wake_up

    def wake(self) -> None:
        """Wake the send task of a client that is BEHIND: a subscription may have work."""
        if self._wake_up is not None:
            self._wake_up.set()

    def disconnect(self, reason: DisconnectReason) -> None:
        """End the conversation for this reason; the first one wins. Never waits."""
        if self.reason is None:
            self.reason = reason
        # The cancellation takes effect at the session's next checkpoint. Until then, and while the session closes the
        # connection, the state keeps all other tasks from writing events.
        self.close()
        self.scope.cancel()

    def close(self) -> None:
        """Let no task write events any more. Idempotent."""
        self.state = ClientState.CLOSING


@frozen
class EncodedBatch:
    """Complete events, in the framing of a client, to write in one piece; at least one.

    ``offsets``: of the events, ascending. ``changed_at``: when the row behind the first event changed, in Trio's time.
    ``position``: of the cursor once the batch was taken. ``after`` and ``prefix``: every subscription of the view at
    this position and with this prefix gets the same bytes, as long as the view does not grow; ``after`` is None if
    the batch cannot be shared. ``reaches_end``: it ends with the newest event of the view.
    """

    data: bytes
    offsets: tuple[int, ...]
    changed_at: float
    position: Position
    after: Position | None = None
    prefix: bytes = b""
    reaches_end: bool = False


_WIDE: Final = 2**32 - 1


class Window:
    """The events in flight in one subscription with an ack mode, which bound how many more may be sent.

    A client may leave thousands unacknowledged, and most of their offsets are consecutive. They are stored as ranges:
    ``_bounds`` has the begin and the end of each range in turn, ascending, relative to ``_base``, in four bytes each,
    or in eight if they do not fit.
    """

    __slots__ = ("_base", "_bounds", "_count", "_cumulative", "_prefetch")

    def __init__(self, mode: AckMode, prefetch: int) -> None:
        self._cumulative = mode is AckMode.CLIENT
        self._prefetch = prefetch
        self._count = self._base = 0
        self._bounds = array("I")

    @property
    def room(self) -> int:
        """The number of events that may be sent before the client acknowledges one."""
        return self._prefetch - self._count

    @property
    def oldest(self) -> int | None:
        """The offset of the first event in flight; None if there is none."""
        return self._base + self._bounds[0] if self._bounds else None

    def sent(self, offsets: tuple[int, ...]) -> None:
        """Add events that were sent; their offsets ascend, and follow those in flight."""
        bounds = self._bounds
        if not bounds:
            # It changes only while nothing is in flight, because all bounds are relative to it.
            self._base = offsets[0]
        if offsets[-1] - self._base >= _WIDE and bounds.typecode == "I":  # in a current state the offsets lie far apart
            bounds = self._bounds = array("Q", bounds)
        for offset in offsets:
            begin = offset - self._base
            if bounds and bounds[-1] == begin:
                bounds[-1] += 1
            else:
                bounds.extend((begin, begin + 1))
        self._count += len(offsets)

    def acknowledge(self, offset: int) -> bool:
        """Remove one event, or in mode ``client`` all up to it; False if that offset is not in flight."""
        bounds, one = self._bounds, offset - self._base
        at = bisect_right(bounds, one)
        # Begins and ends alternate, so an even index is outside of all ranges: the event was never sent, or is
        # acknowledged.
        if at % 2 == 0:
            return False
        if self._cumulative:  # first remove all before it, so that its range is the first one, and begins with it
            self._count -= sum(bounds[1:at:2]) - sum(bounds[0:at:2]) + one
            del bounds[: at - 1]
            bounds[0], at = one, 1
        self._count -= 1
        begin, end = bounds[at - 1], bounds[at]
        if begin < one < end - 1:
            bounds[at:at] = array(bounds.typecode, (one, one + 1))
        elif begin < one:
            bounds[at] = one
        elif one < end - 1:
            bounds[at - 1] = one + 1
        else:
            del bounds[at - 1 : at + 1]
        return True


@define(eq=False)
class Subscription:
    """A cursor of one client into one view.

    Every event up to ``position`` was sent or is not wanted. ``replay``: what is sent first; None after its end, or if
    there is none. ``number``: counts the subscriptions of the client; its ack ids begin with it. ``prefix``: the bytes
    that all MESSAGE frames of this subscription begin with; for event streams a constant. ``window``: None if the
    client does not acknowledge. ``live_after``: the newest offset when it began; events up to it are not live.
    ``view``: that of its destination; the subscription is one of its readers. ``started``: the RECEIPT was written.
    ``resume_header``: a header line for the next MESSAGE, or empty. ``completes_state``: the next MESSAGE completes the
    current state.

    ``in_step``: the fan-out may give it the batch that another subscription took at the very same position. That is
    true after a batch of live events, while it needs no acks.

    ``retry_at``: the store is not read for this subscription before then (Trio's time). ``backoff``: since its last
    read failed.
    """

    client: Client
    number: int
    prefix: bytes
    position: Position
    window: Window | None = None
    live_after: int = 0
    view: View = field(init=False)
    replay: Replay | None = None
    resume_header: bytes = b""
    completes_state: bool = False
    started: bool = False
    in_step: bool = False
    backoff: Backoff | None = None
    retry_at: float = 0.0

    @property
    def has_work(self) -> bool:
        """Whether there is an event to send, and the client has room for it."""
        return (
            self.started
            and (self.view.last > self.position.offset or self.replay is not None)
            and (self.window is None or self.window.room > 0)
        )

    @property
    def in_tail(self) -> bool:
        """Whether the tail has every event after its position, and no replay comes first."""
        return self.replay is None and self.position.offset >= self.view.evicted

    @property
    def shareable(self) -> bool:
        """Whether its frames are those of every subscription of the view with the same prefix and position."""
        return self.window is None and not self.resume_header and not self.completes_state

    def begin_after(self, position: Position, replay: Replay | None = None, resume_header: bytes = b"") -> None:
        """Set where the subscription begins, before it is started."""
        self.position = position
        self.replay = replay
        self.resume_header = resume_header

    def start(self) -> None:
        """Let events be sent: the RECEIPT was written."""
        self.started = True

    def skip_to(self, offset: int) -> None:
        """Move the cursor over events of other destinations."""
        self.position = self.position.at(max(self.position.offset, offset))
        self._leave_replay()

    def _leave_replay(self) -> None:
        if self.replay is not None and self.position.offset >= self.replay.until.offset:
            self.replay = None

    def store_answered(self) -> None:
        """Let the next read of the store begin at once."""
        self.backoff, self.retry_at = None, 0.0

    def store_failed(self, now: float) -> None:
        """Read the store again after a pause, not before."""
        self.backoff = self.backoff or Backoff()
        self.retry_at = now + self.backoff.next_s()

    def commit(self, batch: EncodedBatch) -> None:
        """Move the cursor over a batch that the transport has taken."""
        if batch.after is not None:  # one object for all equal prefixes: the fan-out compares them by identity
            self.prefix = batch.prefix
        self.position = batch.position
        self.resume_header, self.completes_state = b"", False
        self._leave_replay()
        is_live = self.replay is None and batch.position.offset >= self.live_after
        self.in_step = self.shareable and self.started and is_live
        if self.window is not None:
            self.window.sent(batch.offsets)

    def end(self) -> None:
        """Take no more batches of other subscriptions: it was unsubscribed."""
        self.in_step = False
