"""The goodbyes: a closed catalogue of how a session ends, what its client is told, and whether it may come back.

Wire contract, "What is refused". Knows nothing of sockets: the session returns one, and says it.

What an exception means for the client in whose service it was raised: it ends that client's session, no other.

All tasks that serve clients use this one table: fan-out, sender, wheel, session, and the reader of trio-websocket.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

import structlog
import trio
from attrs import evolve, field, frozen

from airy_trio.log.store import PositionExpired
from airy_trio.stomp import errors
from airy_trio.websocket.stream import StalledError


class Reconnect(Enum):
    """What a well-behaved client does after it was sent away."""

    NO = "no"
    YES = "yes"
    LATER = "later"
    WITH_CREDENTIALS = "with new credentials"


@frozen
class DisconnectReason:
    """How one session ends.

    ``token``: the ``message`` header of the ERROR frame; None: no ERROR. ``close_code``: of the WebSocket; None: no
    Close frame. ``prose``: the ERROR's body. ``receipt_id`` and ``headers``: further headers of the ERROR.
    ``reason``: for the log only, what decided, such as a setting or a claim; it quotes no credentials and no values of
    their claims. The client does not receive it, so farewells that differ only in it are equal.
    """

    name: str
    token: str | None
    close_code: int | None
    come_back: Reconnect
    prose: str = ""
    receipt_id: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    reason: str = field(default="", eq=False)


DONE: Final = DisconnectReason("done", None, 1000, Reconnect.NO)
PROTOCOL_ERROR: Final = DisconnectReason(
    "protocol error", "400-protocol-error", 1002, Reconnect.NO, "The client broke the protocol."
)
UNAUTHORIZED: Final = DisconnectReason(
    "unauthorized", "401-unauthorized", 4401, Reconnect.WITH_CREDENTIALS, "The credentials were not accepted."
)
TOKEN_EXPIRED: Final = evolve(
    UNAUTHORIZED,
    token="401-token-expired",  # noqa: S106 - of an ERROR
    prose="The credentials were good until some time ago; newer ones are needed.",
)
FORBIDDEN: Final = DisconnectReason("forbidden", "403-forbidden", 4403, Reconnect.NO, "This is not allowed.")
NOT_FOUND: Final = DisconnectReason(
    "not found",
    "404-unknown-destination",
    4404,
    Reconnect.NO,
    "There is no such destination; known are /events and what is below it.",
)
SILENT: Final = DisconnectReason(
    "silent",
    "408-heart-beat-missed",
    4408,
    Reconnect.YES,
    "Nothing came for longer than the agreed heart-beats allow.",
)
UNANSWERED: Final = evolve(
    SILENT,
    token="408-ping-unanswered",  # noqa: S106 - of an ERROR
    prose="Nothing came for a quarter of an hour, not even an answer to a PING.",
)
CONNECT_TIMEOUT: Final = DisconnectReason(
    "silent", "408-connect-timeout", 4408, Reconnect.YES, "No CONNECT frame came in time."
)
TAKEN_OVER: Final = DisconnectReason(
    "taken over", "409-durable-taken", 4409, Reconnect.NO, "Another connection goes on with this durable subscription."
)
POSITION_EXPIRED: Final = DisconnectReason(
    "position expired",
    "410-position-expired",
    4410,
    Reconnect.YES,
    "Events that this client has not had are no longer kept; it must subscribe again and reload.",
)
TOO_LARGE: Final = DisconnectReason(
    "too large", "413-frame-too-large", 1009, Reconnect.NO, "The frame is larger than is allowed."
)
TOO_MANY: Final = DisconnectReason(
    "too many subscriptions",
    "429-too-many-subscriptions",
    1013,
    Reconnect.LATER,
    "This connection has as many subscriptions as are allowed, or this user as many names of durable ones.",
)
INTERNAL: Final = DisconnectReason("internal", "500-internal", 1011, Reconnect.YES, "The server failed.")
KEYS_AWAY: Final = evolve(
    INTERNAL, prose="The keys that credentials are verified with cannot be had now; what the client sent may be good."
)
STORE_UNAVAILABLE: Final = DisconnectReason(
    "event store unavailable",
    "503-event-store-unavailable",
    1012,
    Reconnect.YES,
    "This server cannot read the event store; another one may be able to.",
)
SHUTTING_DOWN: Final = DisconnectReason(
    "shutting down", "503-shutting-down", 1012, Reconnect.YES, "The server is being stopped."
)
TOO_SLOW: Final = DisconnectReason("too slow", None, None, Reconnect.YES)
"""The client took nothing for ``send_timeout_s``: no goodbye can reach it."""
GONE: Final = DisconnectReason("gone", None, None, Reconnect.YES)
"""The client left by itself: there is nobody to tell."""
REFUSED: Final = DisconnectReason("refused", None, None, Reconnect.NO)
"""The request did not become a WebSocket; it was answered in HTTP."""

CATALOGUE: Final = (
    DONE,
    PROTOCOL_ERROR,
    UNAUTHORIZED,
    FORBIDDEN,
    NOT_FOUND,
    SILENT,
    UNANSWERED,
    CONNECT_TIMEOUT,
    TAKEN_OVER,
    POSITION_EXPIRED,
    TOO_LARGE,
    TOO_MANY,
    INTERNAL,
    STORE_UNAVAILABLE,
    SHUTTING_DOWN,
    TOO_SLOW,
    GONE,
    REFUSED,
)

CLIENT_FAULT: Final = "4"
"""The tokens of what clients do wrong begin with it, as the statuses of HTTP do."""
CLIENT_FAULT_TOKENS: Final = errors.TOKENS | {
    "400-bad-durable",
    "400-durable-needs-ack",
    "401-token-expired",
    "403-destination",
    "403-durable-needs-auth",
    "413-too-many-fragments",
    *(row.token for row in CATALOGUE if row.token is not None and row.token.startswith(CLIENT_FAULT)),
}
"""All of them, so that their counters exist before the first one occurs."""

_BY_STATUS: Final[Mapping[str, DisconnectReason]] = {row.token[:3]: row for row in CATALOGUE if row.token is not None}


def with_token(
    token: str, prose: str, *, receipt_id: str | None = None, headers: tuple[tuple[str, str], ...] = ()
) -> DisconnectReason:
    """Give the catalogue's row for the number that a token begins with, with the caller's token and words.

    Raises ``LookupError`` for a number that is not in the catalogue.
    """
    return evolve(_BY_STATUS[token[:3]], token=token, prose=prose, receipt_id=receipt_id, headers=headers)


logger = structlog.get_logger(__name__)


def reason_after(fault: Exception, session: str) -> DisconnectReason:
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
