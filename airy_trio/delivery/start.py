"""Where a subscription starts: after the position that a client sends, or with the replay that it asks for.

Wire contract, "Positions and resuming". Reads the log; sends nothing.
"""

from typing import Final

from attrs import frozen

from airy_trio.delivery.client import ReplayOptions
from airy_trio.events.destinations import types_of
from airy_trio.events.models import STATE_TYPES
from airy_trio.log.event_log import EventLog
from airy_trio.log.reads import Reads, Replay
from airy_trio.log.store import Position, PositionExpired
from airy_trio.log.tail import View

# The values of the header ``resume``.
LIVE: Final = "live"
RESUMED: Final = "resumed"
RESET_EXPIRED: Final = "reset-expired"
RESET_EPOCH: Final = "reset-epoch"
RESUMES: Final = (LIVE, RESUMED, RESET_EXPIRED, RESET_EPOCH)


@frozen
class StartRequest:
    """Where a SUBSCRIBE asks to start: after ``last_event_id``, else by ``replay`` (one of ``stomp.frames.REPLAYS``).

    ``replay`` decides as well if the position cannot be resumed.

    ``last_event_id``: as the client sent it. ``address``: for the fair sharing of reads of the store.
    """

    last_event_id: str | None
    replay: str | None
    address: str = ""


@frozen
class Start:
    """Where a subscription starts: after ``position``, with the replay if there is one, then with all later events.

    ``resume``: the header of the same name. ``state``: the headers that describe the replay, unless it is the whole
    recent window.
    """

    position: Position
    resume: str
    replay: Replay | None = None
    state: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers of the RECEIPT."""
        return ("position", str(self.position)), ("resume", self.resume), *self.state


def start_at_once(reads: Reads, view: View, request: StartRequest, options: ReplayOptions) -> Start | None:
    """Decide where a subscription starts if the tail is enough for that; None if the store must be asked."""
    if request.last_event_id is not None:
        position = Position.parse(request.last_event_id)
        if position is None or not _is_known(reads.log, position) or position.offset < view.evicted:
            return None
        return Start(position, RESUMED)
    if request.replay == "none":
        return Start(reads.log.head, LIVE)
    if request.replay in ("all", "current"):
        return None
    since = reads.since_in_tail(options.window_s)
    return None if since is None else _recent(reads, view, since, LIVE, options)


async def start(reads: Reads, view: View, request: StartRequest, options: ReplayOptions) -> Start:
    """Decide where a subscription to a view starts. Raises ``StoreUnavailable``."""
    resume = LIVE
    if request.last_event_id is not None:
        position = Position.parse(request.last_event_id)
        resume = await _verdict(reads, view, position, request.address)
        if position is not None and resume == RESUMED:
            return Start(position, resume)
    if request.replay == "current":
        return await _current(reads, view, resume, options, request.address)
    if request.replay == "none":
        return Start(reads.log.head, resume)
    if request.replay == "all":
        async with reads.gate.place(request.address):
            return Start(await reads.floor(), resume)
    since = await reads.since(options.window_s, address=request.address)
    return _recent(reads, view, since, resume, options)


def _recent(reads: Reads, view: View, since: Position, resume: str, options: ReplayOptions) -> Start:
    """Start where the recent window begins, or later if the window would have more than ``events_max`` events."""
    begin = _limited(since.offset, reads.log.head, options)
    # It may be older than the head. Later events are sent after the replay, as live events are.
    until = reads.recent_end()
    replay = Replay(until=until) if begin < until.offset and reads.log.tail.may_have_newer(view, begin) else None
    return Start(since.at(begin), resume, replay, (("state", "partial"),) if begin > since.offset else ())


def _limited(since: int, head: Position, options: ReplayOptions) -> int:
    return max(since, head.offset - options.events_max) if options.events_max else since


async def _current(reads: Reads, view: View, resume: str, options: ReplayOptions, address: str) -> Start:
    """Start with the current state. Reads its first page now, so that the RECEIPT can report an empty state."""
    while True:
        state = await reads.current_state(options.window_s)
        types = types_of(view.destination)
        missing = sorted(state.missing(STATE_TYPES & types))
        headers = [("state", "partial" if missing else "current"), ("until", str(state.until))]
        if missing:
            headers.append(("state-missing", ",".join(missing)))
        # Deletions are included. If the window begins before the tail of this node, the replay may have an event of an
        # object that was deleted later, and the client must receive the deletion too.
        others = frozenset(type_ for type_ in types if type_.replace(".deleted", ".updated") not in state.kept)
        since = _limited(state.since, state.until, options) if others else state.until.offset
        replay: Replay | None = Replay(until=state.until, since=since, state=state.at, types=others, announced=True)
        begin = state.until.at(since if state.at is None else 0)
        try:
            # The send task usually finds this page in memory, because the newest pages are retained.
            page = await reads.page(begin, view.destination, replay, address=address)
        except PositionExpired:  # another epoch or generation has begun
            # Not reported to the client, which has not received anything of that state yet.
            continue
        if page.completes_state and not page.events:
            begin, replay = state.until, None
        return Start(begin, resume, replay, tuple(headers))


async def _verdict(reads: Reads, view: View, position: Position | None, address: str) -> str:
    if position is None:
        return RESET_EPOCH
    if not _is_known(reads.log, position):
        async with reads.gate.place(address):
            # Another node may have sent the client a position that this node has not read yet. The position is compared
            # again, because this node may have read it while the client waited for its place.
            if not _is_known(reads.log, position):
                await reads.log.catch_up()
        if not _is_known(reads.log, position):
            return RESET_EPOCH
    # The tail has everything after the position, so the store, which may be slow or unavailable, need not be read.
    if position.offset >= view.evicted:
        return RESUMED
    async with reads.gate.place(address):
        floor = await reads.floor()
    if floor.epoch != position.epoch:  # a new epoch began during the read
        return RESET_EPOCH
    return RESUMED if position >= floor else RESET_EXPIRED


def _is_known(eventlog: EventLog, position: Position) -> bool:
    return position.epoch == eventlog.epoch and position <= eventlog.head
