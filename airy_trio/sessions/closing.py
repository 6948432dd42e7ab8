"""Close a connection: send its disconnect reason, close the transport, and log how it ended.

Every step has a time limit, so a peer cannot delay the end of its connection; a peer that does not take its
disconnect reason in time is cut off (``abort``).
"""

import math
from collections import Counter
from typing import Final

import structlog
import trio

from airy_trio.delivery.client import Client
from airy_trio.delivery.disconnects import TOO_SLOW, reason_after
from airy_trio.delivery.tasks import Tasks
from airy_trio.websocket.fair_queue import Turn
from airy_trio.websocket.frames import CLOSE_BYTES_MAX, close_frame, ends_with_close, text_message
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


async def close_handshake(client: Client, turn: Turn) -> bool:
    """Send ERROR and Close frame and wait for the client's Close frame; False if the connection must be aborted.

    Further input is dropped without being parsed: 100,000 small messages of ten clients each would otherwise use all of
    the processor.
    """
    reason, stream = client.reason, client.stream
    if reason is None or reason is TOO_SLOW or stream.stalled:
        return False
    with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        try:
            if reason.token is not None:
                error = client.connection.error(reason.token, reason.prose, reason.receipt_id, reason.headers)
                await stream.write(text_message(error))
            if reason.close_code is not None:
                await stream.close(close_frame(reason.close_code, reason.token or reason.name))
            if not stream.ended:
                await read_to_end(stream.transport, turn, after=stream.unread, or_close=True)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True
    return False


async def read_to_end(transport: Transport, turn: Turn, *, after: bytes = b"", or_close: bool = False) -> None:
    """Read and drop input to its end, or to a Close frame. Each read takes a turn in the fair queue.

    ``after``: the input that came before.
    """
    tail = after[-CLOSE_BYTES_MAX:]
    if or_close and ends_with_close(tail):
        return
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
