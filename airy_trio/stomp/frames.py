"""One frame as a value, and what those of a client ask for: requests in one closed union, with agreed heart-beats.

``Connection.receive`` returns requests. Whether one is granted is the caller's decision.
"""

import re
from collections.abc import Iterable
from enum import Enum
from typing import Final

from attrs import field, frozen

UNESCAPED_COMMANDS = frozenset({"CONNECT", "STOMP", "CONNECTED"})
"""Their headers are never escaped, so that a peer of STOMP 1.0 can read them (STOMP 1.2, "Value Encoding")."""


class Version(Enum):
    """A version of STOMP; in ascending order."""

    V1_0 = "1.0"
    V1_1 = "1.1"
    V1_2 = "1.2"


@frozen
class Frame:
    """One frame. ``headers`` are unescaped, in the order in which they were sent, repeated ones included."""

    command: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def get(self, name: str) -> str | None:
        """Return the value of a header: the first one if it is repeated (STOMP 1.2, "Repeated Header Entries")."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def receipt(self) -> str | None:
        """The receipt id that the client asks for. CONNECT and STOMP cannot have one (STOMP 1.2, "Header receipt")."""
        return None if self.command in UNESCAPED_COMMANDS else self.get("receipt")


SILENT_AFTER_INTERVALS = 2.5
"""Browsers run the timers of hidden tabs once a minute. An interval of 30 s, times this, tolerates that."""

_HEADER = re.compile(r" *([0-9]{1,18}) *, *([0-9]{1,18}) *")


@frozen(kw_only=True)
class HeartBeat:
    """The agreed intervals in seconds; None: no heart-beats in this direction.

    ``outgoing_s``: the longest time without a write of this side. ``incoming_s``: the interval that the peer has
    promised.
    """

    outgoing_s: float | None = None
    incoming_s: float | None = None

    @property
    def silent_after_s(self) -> float | None:
        """The time without input after which the peer counts as gone; None: no limit."""
        return None if self.incoming_s is None else SILENT_AFTER_INTERVALS * self.incoming_s


def negotiate(peer_header: str | None, own_ms: int) -> HeartBeat:
    """Agree on heart-beats (STOMP 1.2, "Heart-beating"): the longer interval of both sides, none if either says 0.

    ``peer_header`` is the ``heart-beat`` of CONNECT or CONNECTED: the interval that the peer can keep, and the one that
    it wants, in milliseconds. None counts as ``0,0``. ``own_ms`` is offered for both directions. Raises ``ValueError``
    if the header is not two numbers.
    """
    if peer_header is None:
        return HeartBeat()
    numbers = _HEADER.fullmatch(peer_header)
    if numbers is None:
        raise ValueError("not two numbers of milliseconds")
    can_send_ms, wants_ms = int(numbers[1]), int(numbers[2])
    return HeartBeat(outgoing_s=_interval_s(own_ms, wants_ms), incoming_s=_interval_s(can_send_ms, own_ms))


def _interval_s(sender_ms: int, receiver_ms: int) -> float | None:
    return max(sender_ms, receiver_ms) / 1000 if sender_ms and receiver_ms else None


NO_SUBSCRIPTION: Final = 0
"""The ``Ack.number`` of an acknowledgement that names a subscription that is not open."""


class AckMode(Enum):
    """How the client acknowledges the messages of a subscription (STOMP 1.2, "SUBSCRIBE ack Header")."""

    AUTO = "auto"
    CLIENT = "client"
    """Cumulative: an ACK covers the message and all messages before it."""
    CLIENT_INDIVIDUAL = "client-individual"


@frozen(kw_only=True)
class Connect:
    """CONNECT or STOMP, with the negotiated version and heart-beats.

    ``authorization`` is the value of that header, scheme included. The ``repr`` has no secrets.
    """

    version: Version
    login: str | None = None
    passcode: str | None = field(default=None, repr=False)
    authorization: str | None = field(default=None, repr=False)
    heartbeat: HeartBeat


REPLAYS: Final = ("current", "recent", "all", "none")
"""The values of the header ``replay``."""


@frozen(kw_only=True)
class Subscribe:
    """SUBSCRIBE. ``number`` counts the subscriptions of the connection from 1; the ``ack`` header starts with it.

    ``prefetch`` is the number of messages that may be unacknowledged; it has no meaning with ``AckMode.AUTO``.
    ``replay`` is one of ``REPLAYS`` or None. ``destination``, ``last_event_id`` and ``durable`` are as the client wrote
    them.
    """

    number: int
    id: str | None = None
    destination: str
    ack: AckMode = AckMode.AUTO
    prefetch: int = 0
    last_event_id: str | None = None
    replay: str | None = None
    durable: str | None = None
    receipt: str | None = None


@frozen(kw_only=True)
class Unsubscribe:
    """UNSUBSCRIBE. ``numbers`` is empty if there is no such subscription; 1.0 can end several, by destination."""

    numbers: tuple[int, ...]
    receipt: str | None


@frozen(kw_only=True)
class Ack:
    """One ACK (``accepted``) or NACK of a message.

    ``number`` None: the acknowledgement is for every subscription that has the message. A number without an open
    subscription (always so for ``NO_SUBSCRIPTION``) means that the client named one that does not exist. Outside a
    transaction ``message_id`` is as the client wrote it. From a transaction it has the form of the server's ids; an
    acknowledgement with an id of another form arrives with ``NO_SUBSCRIPTION``.
    """

    number: int | None
    message_id: str
    accepted: bool


@frozen(kw_only=True)
class Acknowledge:
    """Acknowledgements that take effect now, in the client's order, and the receipt id of the frame.

    ACK and NACK outside a transaction have one, COMMIT has all of its transaction. BEGIN, ABORT, and ACK and NACK
    inside a transaction have none.
    """

    acks: Iterable[Ack]
    receipt: str | None


@frozen(kw_only=True)
class Disconnect:
    """DISCONNECT. No frame after it is read."""

    receipt: str | None


Request = Connect | Subscribe | Unsubscribe | Acknowledge | Disconnect
"""The closed union: every ``match`` over it ends in ``assert_never``."""
