"""Close a connection: send its disconnect reason, close the transport, and log how it ended.

Every step has a time limit, so a peer cannot delay the end of its connection; a peer that does not take its
disconnect reason in time is cut off (``abort``).
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

# How long ERROR, Close frame and the client's answer may take together; then the connection is aborted.
CLOSE_TIMEOUT_S: Final = 1.0
# How long the peer's last bytes are read before the transport is closed. If they were not, the kernel would reset the
# connection and discard what the peer has not received yet.
LINGER_S: Final = 1.0
# In addition to LINGER_S, for ending the tasks and aborting, which should take no time.
ABORT_TIMEOUT_S: Final = 2.0
# Of input that is dropped, in one read.
DROPPED_BYTES_MAX: Final = 65_536
# For each event and reason, one line in this time is logged at level info.
LOG_SAMPLE_EVERY_S: Final = 10.0


def closed_by_protocol(stream: FramedStream, reason: CloseReason | None) -> DisconnectReason:
    """Return why trio-websocket has ended: the client left, or it violated the WebSocket protocol."""
    if stream.oversized or stream.flooded:
        pieces = f"A message was sent in more than {PIECES_MAX} pieces, or in more than {SMALL_MAX} small ones."
        return TOO_LARGE if stream.oversized else with_token("413-too-many-fragments", pieces)
    if reason is None:
        return INTERNAL  # its reader failed; `Tasks` logs the exception, perhaps later than this
    if reason.code == CloseCode.ABNORMAL_CLOSURE:
        return GONE
    if reason.code == CloseCode.MESSAGE_TOO_BIG:
        return evolve(TOO_LARGE, token=None)  # trio-websocket has written the Close frame
    if stream.closing:
        return GONE  # the client's Close frame has been answered
    return evolve(PROTOCOL_ERROR, token=None, close_code=reason.code)


async def close_handshake(client: Client, turn: Turn, *, reader: Tasks | None) -> bool:
    """Send ERROR and Close frame and wait for the client's Close frame; False if the connection must be aborted.

    ``reader``: the tasks of the session, the first of which is trio-websocket's reader; None if that is failing. It is
    stopped before anything is written. Further input is dropped without being parsed: 100,000 small messages of ten
    clients each would otherwise use all of the processor.
    """
    reason, stream = client.reason, client.stream
    if reason is None or reason is TOO_SLOW or stream.stalled:
        return False
    with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        try:
            if reader is not None:
                async with stream.lock:  # so that the reader is not cancelled in the middle of a write
                    await reader.stop_first()
            if reason.token is not None:
                error = client.connection.error(reason.token, reason.prose, reason.receipt_id, reason.headers)
                await stream.write(text_message(error))
            if reason.close_code is not None:
                await stream.close(close_frame(reason.close_code, reason.token or reason.name))
            if not stream.ended:
                await read_to_end(stream.transport, turn, or_close=True)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True
    return False


async def read_to_end(transport: Transport, turn: Turn, *, or_close: bool = False) -> None:
    """Read and drop input to its end, or to a Close frame. Each read takes a turn in the fair queue."""
    tail = b""
    while data := await transport.receive_some(DROPPED_BYTES_MAX):
        tail = (tail + data)[-CLOSE_BYTES_MAX:]
        if or_close and ends_with_close(tail):
            return
        await turn()


async def close(client: Client, tasks: Tasks, transport: Transport, turn: Turn, *, orderly: bool) -> None:
    """Stop the tasks and close the transport: in order if ``orderly`` and the peer closes in time, else abort."""
    with trio.move_on_after(LINGER_S):
        try:
            await tasks.stop()
            if orderly:
                await transport.send_eof()
                await read_to_end(transport, turn)
                await transport.aclose()
                return
        except Exception as fault:  # noqa: BLE001 - the connection is aborted in any case
            reason_after(fault, client.session)  # which logs an unexpected one
    await abort(transport, client.session)


async def abort(transport: Transport, session: str) -> None:
    """Close the transport at once; an exception is logged, not raised."""
    try:
        await transport.abort()
    except Exception as fault:  # noqa: BLE001 - it would end the nursery of all sessions
        reason_after(fault, session)


class SampledLog:
    """Log lines about connections that end before CONNECT is accepted, sampled by event and reason.

    Any client can cause thousands of them in a second, without credentials. One line for each event and reason in
    ``LOG_SAMPLE_EVERY_S`` is logged at level info, all others at level debug. ``not_logged`` in a line at level info is
    the number of lines at level debug since the one before it. Memory is kept for each event and reason, so a reason
    must come from a small, fixed set and contain nothing that a client sends.
    """

    def __init__(self) -> None:
        self._logged_at: dict[tuple[str, str], float] = {}
        self._not_logged: Counter[tuple[str, str]] = Counter()

    def log(self, event: str, reason: str, /, **fields: object) -> None:
        """Log an event; ``reason`` selects the sample that it belongs to."""
        now = trio.current_time()
        key = event, reason
        if now < self._logged_at.get(key, -math.inf) + LOG_SAMPLE_EVERY_S:
            self._not_logged[key] += 1
            logger.debug(event, **fields)
        else:
            self._logged_at[key] = now
            logger.info(event, **fields, not_logged=self._not_logged.pop(key, 0))
