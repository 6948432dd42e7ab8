"""Disconnect reasons: a closed catalogue of how a session ends, and whether its client may reconnect.

Wire contract, "What is refused". Every task that serves a client disconnects it with a reason from this catalogue;
only the session sends it. ``reason_after`` maps an exception to the reason for the client that was being served: the
fan-out, the send tasks, the timer wheel and the session all use it.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

import structlog
import trio
from attrs import evolve, field, frozen

from airy_trio.log.store import PositionExpired
from airy_trio.stomp import errors
from airy_trio.websocket.frames import TOO_LARGE as TOO_LARGE_CODE
from airy_trio.websocket.frames import FrameError, TooManyFragmentsError
from airy_trio.websocket.stream import StalledError, TooMuchInputError


class Reconnect(Enum):
    """What a client should do after it was disconnected."""

    NO = "no"
    YES = "yes"
    LATER = "later"
    WITH_CREDENTIALS = "with new credentials"


@frozen
class DisconnectReason:
    """How one session ends.

    ``token``: the ``message`` header of the ERROR frame; None: no ERROR. ``close_code``: of the WebSocket; None: no
    Close frame. ``prose``: the body of the ERROR. ``receipt_id`` and ``headers``: further headers of the ERROR.
    ``details``: for the log only: the setting or the claim that decided, without credentials or values of claims. The
    client does not receive them, so reasons that differ only in their details are equal. See ``delivery.framing``
    for event streams.
    """

    name: str
    token: str | None
    close_code: int | None
    reconnect: Reconnect
    prose: str = ""
    receipt_id: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    details: str = field(default="", eq=False)


DONE: Final = DisconnectReason("done", None, 1000, Reconnect.NO)
PROTOCOL_ERROR: Final = DisconnectReason(
    "protocol error", "400-protocol-error", 1002, Reconnect.NO, "The client violated the protocol."
)
UNAUTHORIZED: Final = DisconnectReason(
    "unauthorized", "401-unauthorized", 4401, Reconnect.WITH_CREDENTIALS, "The credentials were not accepted."
)
TOKEN_EXPIRED: Final = evolve(
    UNAUTHORIZED,
    token="401-token-expired",  # noqa: S106 - of an ERROR
    prose="The credentials have expired; new ones are needed.",
)
FORBIDDEN: Final = DisconnectReason("forbidden", "403-forbidden", 4403, Reconnect.NO, "This is not allowed.")
NOT_FOUND: Final = DisconnectReason(
    "not found",
    "404-unknown-destination",
    4404,
    Reconnect.NO,
    "There is no such destination; use /events, /events/TYPE, /events/channel/ID or /events/conversation/ID.",
)
SILENT: Final = DisconnectReason(
    "silent",
    "408-heart-beat-missed",
    4408,
    Reconnect.YES,
    "Nothing was received for longer than the agreed heart-beats allow.",
)
UNANSWERED: Final = evolve(
    SILENT,
    token="408-ping-unanswered",  # noqa: S106 - of an ERROR
    prose="Nothing was received for a quarter of an hour, not even a PONG.",
)
CONNECT_TIMEOUT: Final = DisconnectReason(
    "silent", "408-connect-timeout", 4408, Reconnect.YES, "No CONNECT frame was received in time."
)
TAKEN_OVER: Final = DisconnectReason(
    "taken over",
    "409-durable-taken",
    4409,
    Reconnect.NO,
    "Another connection has taken over this durable subscription.",
)
POSITION_EXPIRED: Final = DisconnectReason(
    "position expired",
    "410-position-expired",
    4410,
    Reconnect.YES,
    "Events that this client has not received are no longer retained; it must subscribe again and reload.",
)
TOO_LARGE: Final = DisconnectReason(
    "too large", "413-frame-too-large", 1009, Reconnect.NO, "The frame is larger than allowed."
)
TOO_MANY: Final = DisconnectReason(
    "too many subscriptions",
    "429-too-many-subscriptions",
    1013,
    Reconnect.LATER,
    "The limit of subscriptions, or of names of durable subscriptions, is reached.",
)
INTERNAL: Final = DisconnectReason("internal", "500-internal", 1011, Reconnect.YES, "The server failed.")
KEYS_AWAY: Final = evolve(
    INTERNAL, prose="The keys that verify credentials are unavailable; the credentials may be valid."
)
STORE_UNAVAILABLE: Final = DisconnectReason(
    "event store unavailable",
    "503-event-store-unavailable",
    1012,
    Reconnect.YES,
    "This server cannot read the event store; another server may be able to.",
)
SHUTTING_DOWN: Final = DisconnectReason(
    "shutting down", "503-shutting-down", 1012, Reconnect.YES, "The server is shutting down."
)
TOO_SLOW: Final = DisconnectReason("too slow", None, None, Reconnect.YES)
"""The client took nothing for ``send_timeout_s``, so neither ERROR nor Close can reach it."""
GONE: Final = DisconnectReason("gone", None, None, Reconnect.YES)
"""The client has left."""
REFUSED: Final = DisconnectReason("refused", None, None, Reconnect.NO)
"""The request became neither a WebSocket nor an event stream; it was answered over HTTP."""

_VARIANTS: Final = TOKEN_EXPIRED, KEYS_AWAY
CATALOGUE: Final = tuple(
    row for row in tuple(globals().values()) if isinstance(row, DisconnectReason) and row not in _VARIANTS
)

# The first character of the tokens for faults of clients, as in the status codes of HTTP.
CLIENT_FAULT: Final = "4"
# All of these tokens, so that their counters exist before the first fault occurs.
CLIENT_FAULT_TOKENS: Final = errors.TOKENS | {
    "400-bad-durable",
    "400-durable-needs-ack",
    "401-token-expired",
    "403-destination",
    "403-durable-needs-auth",
    "413-too-many-fragments",
    *(row.token for row in CATALOGUE if row.token is not None and row.token.startswith(CLIENT_FAULT)),
}

_BY_STATUS: Final[Mapping[str, DisconnectReason]] = {row.token[:3]: row for row in CATALOGUE if row.token is not None}


def with_token(
    token: str,
    prose: str,
    *,
    receipt_id: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
    details: str = "",
) -> DisconnectReason:
    """Return the catalogue's row for the status number of a token, with this token and prose.

    Raises ``LookupError`` if the number is not in the catalogue.
    """
    row = _BY_STATUS[token[:3]]
    return evolve(row, token=token, prose=prose, receipt_id=receipt_id, headers=headers, details=details)


logger = structlog.get_logger(__name__)


def reason_after(fault: Exception, session: str) -> DisconnectReason:  # noqa: PLR0911 - one for each kind of fault
    """Return the disconnect reason for an exception; log an unexpected one with its traceback."""
    # The order counts: a StalledError is a BrokenResourceError too, and both errors about too much input are
    # FrameErrors.
    match fault:
        case StalledError():
            return TOO_SLOW
        case trio.BrokenResourceError() | trio.ClosedResourceError():
            return GONE
        case PositionExpired():
            return POSITION_EXPIRED
        case TooMuchInputError():
            return TOO_LARGE
        case TooManyFragmentsError():
            return with_token("413-too-many-fragments", f"The client sent too much: {fault}.")
        case FrameError(code=code):  # without an ERROR: a client that breaks the framing could not read it
            reason = TOO_LARGE if code == TOO_LARGE_CODE else PROTOCOL_ERROR
            return evolve(reason, token=None, close_code=code, details=str(fault))
        case _:
            logger.error("session failed", session=session, exc_info=fault)
            return INTERNAL
