"""What an exception means for the client in whose service it was raised: it ends that client's session, no other.

All tasks that serve clients use this one table: fan-out, sender, wheel, session, and the reader of trio-websocket.
"""

import structlog
import trio

from airy_trio.log.store import PositionExpired
from airy_trio.websocket.farewells import GONE, INTERNAL, POSITION_EXPIRED, TOO_SLOW, Farewell
from airy_trio.websocket.wire import StalledError

logger = structlog.get_logger(__name__)


def farewell_after(fault: Exception, session: str) -> Farewell:
    """Give the farewell for an exception; one that nothing explains is logged with its traceback."""
    match fault:
        case StalledError():
            return TOO_SLOW
        case trio.BrokenResourceError() | trio.ClosedResourceError():
            return GONE
        case PositionExpired():
            return POSITION_EXPIRED
        case _:
            logger.error("session failed", session=session, exc_info=fault)
            return INTERNAL
