"""What a client asks for, as frozen facts in one closed union; whether it is granted is decided elsewhere.

The arithmetic of heart-beats (STOMP 1.2, "Heart-beating"): intervals out of headers; clocks are the caller's.
"""

import re
from collections.abc import Collection
from enum import Enum
from typing import Final, Self

from attrs import field, frozen

from airy_trio.stomp.frames import Version

SILENT_AFTER_INTERVALS = 2.5
"""Browsers throttle the timers of hidden tabs to one a minute: an interval of 30 s tolerates that."""

_HEADER = re.compile(r" *([0-9]{1,18}) *, *([0-9]{1,18}) *")


@frozen(kw_only=True)
class HeartBeat:
    """What was agreed, in seconds. None: no heart-beats in this direction.

    ``outgoing_s``: how long we may write nothing. ``incoming_s``: how often the client has promised to write.
    """

    outgoing_s: float | None
    incoming_s: float | None

    @classmethod
    def none(cls) -> Self:
        """Make the agreement of STOMP 1.0, and of who sends no header: none in either direction."""
        return cls(outgoing_s=None, incoming_s=None)

    @property
    def silent_after_s(self) -> float | None:
        """How long the client may write nothing before it counts as gone; None: for ever."""
        return None if self.incoming_s is None else SILENT_AFTER_INTERVALS * self.incoming_s


def negotiate(client_header: str | None, server_ms: int) -> HeartBeat:
    """Agree on intervals: of each direction the longer of both sides, or none where either says 0.

    ``client_header`` is the ``heart-beat`` of CONNECT, "what it can send, what it wants", in milliseconds; None
    counts as ``0,0``. ``server_ms`` is what we offer for both. Raises ``ValueError`` where the header is not two
    numbers.
    """
    if client_header is None:
        return HeartBeat.none()
    numbers = _HEADER.fullmatch(client_header)
    if numbers is None:
        message = "not two numbers of milliseconds"
        raise ValueError(message)
    can_send_ms, wants_ms = int(numbers[1]), int(numbers[2])
    return HeartBeat(outgoing_s=_interval_s(server_ms, wants_ms), incoming_s=_interval_s(can_send_ms, server_ms))


def _interval_s(sender_ms: int, receiver_ms: int) -> float | None:
    return max(sender_ms, receiver_ms) / 1000 if sender_ms and receiver_ms else None


NO_SUBSCRIPTION: Final = 0
"""The number in an ``Ack`` whose client named a subscription that is not open."""


class AckMode(Enum):
    """How the client acknowledges the messages of a subscription (STOMP 1.2, "SUBSCRIBE ack Header")."""

    AUTO = "auto"
    CLIENT = "client"
    """Cumulative: an ACK covers the message and all before it."""
    CLIENT_INDIVIDUAL = "client-individual"


@frozen(kw_only=True)
class Connect:
    """CONNECT or STOMP, with what was negotiated. ``authorization`` is that header's value, scheme included.

    The secrets do not show in its ``repr``.
    """

    version: Version
    login: str | None
    passcode: str | None = field(repr=False)
    authorization: str | None = field(repr=False)
    heartbeat: HeartBeat


@frozen(kw_only=True)
class Subscribe:
    """SUBSCRIBE. ``number`` counts the subscriptions of the connection from 1; it is in the ``ack`` header.

    ``prefetch`` is how many messages may be unacknowledged; with ``AckMode.AUTO`` it means nothing. ``replay`` is
    ``none``, ``all`` or None. ``destination``, ``last_event_id`` and ``durable`` are as the client wrote them.
    """

    number: int
    id: str | None
    destination: str
    ack: AckMode
    prefetch: int
    last_event_id: str | None
    replay: str | None
    durable: str | None
    receipt: str | None


@frozen(kw_only=True)
class Unsubscribe:
    """UNSUBSCRIBE. No number: there was no such subscription. Several: 1.0, by destination."""

    numbers: tuple[int, ...]
    receipt: str | None


@frozen(kw_only=True)
class Ack:
    """One ACK (``accepted``) or NACK of a message.

    ``number`` None: in every subscription that has the message. A number that belongs to no open subscription
    (``NO_SUBSCRIPTION`` never does) means that the client named one that is not there. Outside a transaction the
    message id is what the client wrote; from a transaction it has the form of the server's ids, and an acknowledgement
    with another id comes with ``NO_SUBSCRIPTION``.
    """

    number: int | None
    message_id: str
    accepted: bool


@frozen(kw_only=True)
class Acknowledge:
    """What has been acknowledged for good, in the client's order, and the receipt of the frame that did it.

    ACK and NACK outside a transaction give one; COMMIT gives all of its transaction; BEGIN, ABORT, and ACK and NACK
    inside a transaction give none.
    """

    acks: Collection[Ack]
    receipt: str | None


@frozen(kw_only=True)
class Disconnect:
    """DISCONNECT. Nothing after it is read."""

    receipt: str | None


Request = Connect | Subscribe | Unsubscribe | Acknowledge | Disconnect
"""The closed union: every ``match`` over it ends in ``assert_never``."""
