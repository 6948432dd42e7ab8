"""What a client asks for, as frozen facts in one closed union; whether it is granted is decided elsewhere."""

from collections.abc import Collection
from enum import Enum
from typing import Final

from attrs import field, frozen

from airy_trio.stomp.frames import Version
from airy_trio.stomp.heartbeats import HeartBeat

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
