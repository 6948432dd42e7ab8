"""The end of a session: why trio-websocket has ended, the farewell that the client can still hear, the connection.

Nothing here takes longer than its time, whatever the peer does: who does not take its farewell is cut.

Sampled log lines about connections that end before CONNECT is accepted.

Any client can open thousands of such connections in a second, without credentials.
"""

import math
from collections import Counter
from typing import Final

import structlog
import trio
from attrs import evolve
from trio_websocket import CloseReason
from wsproto.frame_protocol import CloseReason as CloseCode

from airy_trio.delivery.client import Client
from airy_trio.delivery.disconnects import (
    GONE,
    INTERNAL,
    PROTOCOL_ERROR,
    TOO_LARGE,
    TOO_SLOW,
    DisconnectReason,
    reason_after,
    with_token,
)
from airy_trio.delivery.tasks import Tasks
from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.stream import (
    CLOSE_BYTES_MAX,
    PIECES_MAX,
    SMALL_MAX,
    FramedStream,
    close_frame,
    ends_with_close,
    text_message,
)
from airy_trio.websocket.transport import Transport

logger = structlog.get_logger(__name__)

LOG_EARLY_ENDS_EVERY_S: Final = 10.0
"""For each event and reason, one line in this time is logged at level info."""


class EarlyEnds:
    """Logs one line for each event and reason in ``LOG_EARLY_ENDS_EVERY_S`` at level info, all others at level debug.

    A line at level info has ``not_logged``: the number of lines at level debug since the one before it. Memory is kept
    for each event and reason, so a reason must come from a small, fixed set and contain nothing that a client sends.
    """

    def __init__(self) -> None:
        self._logged_at: dict[tuple[str, str], float] = {}
        self._not_logged: Counter[tuple[str, str]] = Counter()

    def log(self, event: str, reason: str, /, **fields: object) -> None:
        """Log an event; ``reason`` selects the sample that it belongs to."""
        now = trio.current_time()
        key = event, reason
        if now < self._logged_at.get(key, -math.inf) + LOG_EARLY_ENDS_EVERY_S:
            self._not_logged[key] += 1
            logger.debug(event, **fields)
        else:
            self._logged_at[key] = now
            logger.info(event, **fields, not_logged=self._not_logged.pop(key, 0))


GOODBYE_S: Final = 1.0
"""How long a goodbye may take; after that the socket is cut."""
LINGER_S: Final = 1.0
"""How long the peer's last bytes are waited for, so that closing does not destroy ours on their way."""
HANG_UP_S: Final = 2.0
"""Beyond ``LINGER_S``, for what should not take any time: ending tasks and cutting the connection."""
DROPPED_BYTES_MAX: Final = 65_536
"""Read at once of what nobody looks at any more."""


def closed_by_protocol(stream: FramedStream, reason: CloseReason | None) -> DisconnectReason:
    """Tell why trio-websocket has ended: the client left, or it broke the WebSocket protocol."""
    if stream.oversized or stream.flooded:
        pieces = f"A message came in more than {PIECES_MAX} pieces, or in more than {SMALL_MAX} small ones."
        return TOO_LARGE if stream.oversized else with_token("413-too-many-fragments", pieces)
    if reason is None:
        return INTERNAL  # its reader failed, which is logged where that was caught, perhaps after this
    if reason.code == CloseCode.ABNORMAL_CLOSURE:
        return GONE
    if reason.code == CloseCode.MESSAGE_TOO_BIG:
        return evolve(TOO_LARGE, token=None)  # its Close frame has been written
    if stream.closing:
        return GONE  # the client's Close frame has been answered
    return evolve(PROTOCOL_ERROR, token=None, close_code=reason.code)


async def say_goodbye(client: Client, stream: FramedStream, turn: Turn, *, reader: Tasks | None) -> bool:
    """Send the client its disconnect reason; False: it did not take it, and has to be cut.

    ``reader``: the session's tasks, of which the first is trio-websocket's; None if that is failing. It is stopped
    before anything is written. What the client still sends is dropped without being parsed: 100,000 small messages of
    ten clients each took the whole processor.
    """
    farewell = client.farewell
    if farewell is None or farewell is TOO_SLOW or stream.stalled:
        return False
    with trio.move_on_after(GOODBYE_S, shield=True):
        try:
            if reader is not None:
                async with stream.lock:  # so that it is not cancelled in the middle of a write
                    await reader.stop_first()
            if farewell.token is not None:
                error = client.connection.error(farewell.token, farewell.prose, farewell.receipt_id, farewell.headers)
                await stream.write(text_message(error))
            if farewell.close_code is not None:
                await stream.close(close_frame(farewell.close_code, farewell.token or farewell.name))
            if not stream.ended:
                await read_to_end(stream.transport, turn, or_close=True)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True
    return False


async def read_to_end(transport: Transport, turn: Turn, *, or_close: bool = False) -> None:
    """Read and drop what the peer still sends, perhaps only to its Close frame; each read takes a turn.

    Unread, it would make the kernel reset the connection, and take back what the peer has not received.
    """
    tail = b""
    while data := await transport.receive_some(DROPPED_BYTES_MAX):
        tail = (tail + data)[-CLOSE_BYTES_MAX:]
        if or_close and ends_with_close(tail):
            return
        await turn()


async def hang_up(client: Client, tasks: Tasks, transport: Transport, turn: Turn, *, orderly: bool) -> None:
    """End the tasks, then the connection: in order where the peer also ends it in time, else cut."""
    with trio.move_on_after(LINGER_S):
        try:
            await tasks.stop()
            if orderly:
                await transport.send_eof()
                await read_to_end(transport, turn)
                await transport.aclose()
                return
        except Exception as fault:  # noqa: BLE001 - the connection is cut in any case
            reason_after(fault, client.session)  # which logs what is no peer's doing
    await cut(transport, client.session)


async def cut(transport: Transport, session: str) -> None:
    """End the connection at once; what fails then is logged."""
    try:
        await transport.abort()
    except Exception as fault:  # noqa: BLE001 - beyond this the nursery of all sessions would end
        reason_after(fault, session)
