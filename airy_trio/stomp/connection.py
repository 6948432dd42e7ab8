"""One STOMP connection seen from the server: a state machine without I/O, clock or any knowledge of what is sent.

Two things move on their own, so each has its own state.

What may still be *read* (``State``):

- ``AWAITING_CONNECT``: only CONNECT or STOMP may come. Small limits hold. Nothing is unescaped, because no version
  is agreed. Any other frame is a fault.
- ``OPEN``: all frames of a client but CONNECT and STOMP may come. Frames may follow CONNECT in the same input: they
  are decoded one by one, each by the version and limits that the one before it has set.
- ``DISCONNECTED``: DISCONNECT was read. Clients do send frames after it; they are ignored and not even decoded.
- ``FAILED``: the client broke the protocol. There is no way to find the next frame, so everything is ignored.
- ``CLOSED``: ERROR was written. Everything is ignored.

What may be *written* (``Greeting``): before a CONNECT was read only ERROR (``NOT_DUE``); then CONNECTED, once
(``DUE``); then RECEIPT and MESSAGE (``SAID``). ERROR may always be written, and nothing after it.

The two meet in one rule: what was read before a DISCONNECT or a fault took effect, and is answered. ``receive`` gives
the requests of one piece of input, all at once; the caller fulfils them in order (``connected`` for Connect,
``receipt`` where one is asked for, ``message_prefix`` of a new subscription), also those that a fault carries as
``fulfilled``, then says ``error``, then calls ``receive`` again or ends.

=====================  ======================  ===========================================================
read                   in AWAITING_CONNECT     in OPEN
=====================  ======================  ===========================================================
CONNECT, STOMP         Connect → OPEN          400-already-connected → FAILED
SUBSCRIBE              400-not-connected       Subscribe
UNSUBSCRIBE            400-not-connected       Unsubscribe; an unknown id ends nothing
ACK, NACK              400-not-connected       Acknowledge, empty inside a transaction
BEGIN, ABORT           400-not-connected       Acknowledge, empty
COMMIT                 400-not-connected       Acknowledge with all that waited
DISCONNECT             400-not-connected       Disconnect → DISCONNECTED
SEND                   400-not-connected       403-send-not-allowed → FAILED: clients never publish here
any other command      400-not-connected       400-unknown-command → FAILED: also the commands of servers
malformed, too large   400-…, 413-… → FAILED   400-…, 413-… → FAILED
=====================  ======================  ===========================================================

Sources: STOMP 1.0, 1.1 and 1.2; wire contract, "STOMP, line by line".

The limits and names of a connection, each with its unit; where they are configured is not known here.

The states of a connection, by name; what leads from one to another is written in ``connection``.

The frames that a server answers with, MESSAGE aside; whether one may be written now is not known here.

Values of our own must be ``encoder.plain``, else ``LocalProtocolError`` is raised.

What each frame of a client does to the connection and what it asks for; whether it may come now is decided before.

A step reads one frame and gives one request. It raises ``RemoteProtocolError`` for a header that is missing or
wrong. Headers that it does not know, and bodies, are passed over.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from typing import Final

from attrs import Attribute, define, field, frozen, validators

from airy_trio.stomp import encoder, errors, requests
from airy_trio.stomp.decoder import Decoder, Limits
from airy_trio.stomp.encoder import plain
from airy_trio.stomp.errors import Fault, LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.frames import Frame, Version
from airy_trio.stomp.requests import (
    NO_SUBSCRIPTION,
    Ack,
    AckMode,
    Acknowledge,
    Connect,
    Disconnect,
    HeartBeat,
    Request,
    Subscribe,
    Unsubscribe,
)
from airy_trio.stomp.subscriptions import OpenSubscription, OpenSubscriptions, Transactions

IN_FLIGHT_DEFAULT: Final = 20_000

_positive = validators.ge(1)


def _is_plain(_instance: object, _attribute: "Attribute[str]", value: str) -> None:
    plain(value)


@frozen(kw_only=True)
class ConnectionOptions:
    """What each connection may do and how the server names itself; one object serves them all.

    The smaller ``…_before_connect`` limits hold until CONNECT was accepted. ``heartbeat_ms`` is offered in both
    directions, 0 is none. ``server`` must be a header value that every client reads (``encoder.plain``, else
    ``LocalProtocolError``). ``transaction_acks_max`` bounds all open transactions together. ``id_bytes_max`` is for the
    id of a subscription and the name of a transaction; these and destinations are kept while they are open, and count
    in octets of UTF-8 without escapes. ``in_flight_max`` bounds the sum of ``prefetch-count`` over the subscriptions
    that acknowledge; by default each may have ``prefetch_default``.
    """

    server: str = field(validator=_is_plain)
    heartbeat_ms: int = field(default=30_000, validator=validators.ge(0))

    frame_bytes_max: int = field(default=65_536, validator=_positive)
    header_count_max: int = field(default=64, validator=_positive)
    header_line_bytes_max: int = field(default=8_192, validator=_positive)
    command_bytes_max: int = field(default=32, validator=_positive)

    frame_bytes_max_before_connect: int = field(default=4_096, validator=_positive)
    header_count_max_before_connect: int = field(default=32, validator=_positive)
    header_line_bytes_max_before_connect: int = field(default=3_072, validator=_positive)
    command_bytes_max_before_connect: int = field(default=16, validator=_positive)

    id_bytes_max: int = field(default=512, validator=_positive)
    destination_bytes_max: int = field(default=512, validator=_positive)
    subscriptions_max: int = field(default=16, validator=_positive)
    transactions_max: int = field(default=16, validator=_positive)
    transaction_acks_max: int = field(default=10_000, validator=_positive)
    prefetch_default: int = field(default=256, validator=_positive)
    prefetch_max: int = field(default=10_000, validator=_positive)
    in_flight_max: int = field(validator=_positive)

    @in_flight_max.default
    def _in_flight_max(self) -> int:
        return max(IN_FLIGHT_DEFAULT, self.subscriptions_max * self.prefetch_default)

    limits: Limits = field(init=False, repr=False)
    """Of a frame after CONNECT."""
    limits_before_connect: Limits = field(init=False, repr=False)
    """Of the first frame: none is larger than it is after CONNECT."""

    @limits.default
    def _limits(self) -> Limits:
        return Limits(
            frame_bytes_max=self.frame_bytes_max,
            header_count_max=self.header_count_max,
            header_line_bytes_max=self.header_line_bytes_max,
            command_bytes_max=self.command_bytes_max,
        )

    @limits_before_connect.default
    def _limits_before_connect(self) -> Limits:
        return Limits(
            frame_bytes_max=min(self.frame_bytes_max_before_connect, self.frame_bytes_max),
            header_count_max=min(self.header_count_max_before_connect, self.header_count_max),
            header_line_bytes_max=min(self.header_line_bytes_max_before_connect, self.header_line_bytes_max),
            command_bytes_max=min(self.command_bytes_max_before_connect, self.command_bytes_max),
        )


class ConnectionState(Enum):
    """What may still be read."""

    AWAITING_CONNECT = auto()
    OPEN = auto()
    DISCONNECTED = auto()
    FAILED = auto()
    CLOSED = auto()


class Greeting(Enum):
    """Whether CONNECTED may be, or was, written."""

    NOT_DUE = auto()
    DUE = auto()
    SAID = auto()


Headers = Iterable[tuple[str, str]]


def connected(options: ConnectionOptions, session: str, version: Version) -> bytes:
    """Write CONNECTED, always with all four headers: a client is known to crash without ``heart-beat``."""
    return encoder.own_frame(
        "CONNECTED",
        ("version", version.value),
        ("session", session),
        ("server", options.server),
        ("heart-beat", f"{options.heartbeat_ms},{options.heartbeat_ms}"),
    )


def receipt(version: Version, receipt_id: str, headers: Headers) -> bytes:
    """Write RECEIPT with further headers of our own."""
    return encoder.own_frame("RECEIPT", *headers, first=encoder.header("receipt-id", receipt_id, version))


def error(version: Version | None, token: str, prose: str, receipt_id: str | None, headers: Headers) -> bytes:
    """Write ERROR: ``message`` is the token, the body is the prose. Version None: none was agreed."""
    body = prose.encode()
    own = [("message", token), ("content-type", "text/plain"), ("content-length", str(len(body))), *headers]
    asked = [] if receipt_id is None else [("receipt-id", receipt_id)]
    return encoder.encode(Frame("ERROR", (*_plain(own), *asked), body), version)


def _plain(headers: Headers) -> list[tuple[str, str]]:
    return [(name, encoder.plain(value)) for name, value in headers]


VERSIONS = ",".join(version.value for version in Version)
"""Our versions, as ``accept-version`` and the ERROR's ``version`` write them."""

_VERSIONS = tuple((version.value, version) for version in Version)

_ACK_ID = re.compile(r"([1-9][0-9]{0,17})\.(.+)", re.DOTALL)
_PREFETCH = re.compile(r"[0-9]{1,18}")
_REPLAYS = (None, "none", "all")


@define
class Negotiated:
    """What stands between client and server: the version, once there is one, subscriptions and transactions."""

    options: ConnectionOptions
    version: Version | None = None
    subscriptions: OpenSubscriptions = field(init=False)
    transactions: Transactions = field(init=False)

    def __attrs_post_init__(self) -> None:
        options = self.options
        self.subscriptions = OpenSubscriptions(
            subscriptions_max=options.subscriptions_max, in_flight_max=options.in_flight_max
        )
        self.transactions = Transactions(
            transactions_max=options.transactions_max, acks_max=options.transaction_acks_max
        )


Step = Callable[[Negotiated, Frame], Request]
"""What a frame does: it changes the session and gives a request, or raises ``RemoteProtocolError``."""


def connect(session: Negotiated, frame: Frame) -> Connect:
    """CONNECT, STOMP: agree on version and heart-beats (STOMP 1.2, "Protocol Negotiation")."""
    version = _common_version(frame.get("accept-version"))
    get = frame.get
    if version is Version.V1_0:  # the frame was read before it was known that this client may pad its values
        heartbeat = HeartBeat.none()
        get = Frame("", tuple((name, value.strip(" \t")) for name, value in frame.headers)).get
    else:
        heartbeat = _heartbeat(session.options, get("heart-beat"))
    session.version = version
    authorization = get("Authorization")
    return Connect(
        version=version,
        login=get("login"),
        passcode=get("passcode"),
        authorization=get("authorization") if authorization is None else authorization,
        heartbeat=heartbeat,
    )


def subscribe(session: Negotiated, frame: Frame) -> Subscribe:
    """SUBSCRIBE: ``id`` is required from 1.1 on; ``ack``, ``prefetch-count`` and ``replay`` must be what we know."""
    options = session.options
    destination = _required(frame, "destination", errors.NO_DESTINATION)
    _check_size(destination, options.destination_bytes_max, errors.DESTINATION_TOO_LARGE)
    subscription_id = frame.get("id") if session.version is Version.V1_0 else _required(frame, "id", errors.NO_ID)
    _check_size(subscription_id or "", options.id_bytes_max, errors.ID_TOO_LARGE)
    ack = _ack_mode(frame.get("ack"))
    prefetch = options.prefetch_default if ack is AckMode.AUTO else _prefetch(options, frame)
    replay = frame.get("replay")
    if replay not in _REPLAYS:
        raise RemoteProtocolError(*errors.BAD_REPLAY)
    subscription = OpenSubscription(
        id=subscription_id, destination=destination, ack=ack, prefetch=0 if ack is AckMode.AUTO else prefetch
    )
    number = session.subscriptions.open(subscription)
    return Subscribe(
        number=number,
        id=subscription_id,
        destination=destination,
        ack=ack,
        prefetch=prefetch,
        last_event_id=frame.get("last-event-id"),
        replay=replay,
        durable=frame.get("durable"),
        receipt=frame.receipt,
    )


def unsubscribe(session: Negotiated, frame: Frame) -> Unsubscribe:
    """UNSUBSCRIBE: by ``id``; in 1.0 also by ``destination``, which ends all subscriptions to it."""
    subscriptions = session.subscriptions
    if session.version is Version.V1_0 and frame.get("id") is None:
        numbers = subscriptions.numbers_to(_required(frame, "destination", errors.NO_DESTINATION))
    else:
        number = subscriptions.number_of(_required(frame, "id", errors.NO_ID))
        numbers = () if number is None else (number,)
    for number in numbers:
        subscriptions.end(number)
    return Unsubscribe(numbers=numbers, receipt=frame.receipt)


def acknowledge(session: Negotiated, frame: Frame) -> Acknowledge:
    """ACK, NACK: at once, or with ``transaction`` at its COMMIT."""
    ack = _ack(session, frame)
    transaction = frame.get("transaction")
    if transaction is None:
        return Acknowledge(acks=(ack,), receipt=frame.receipt)
    session.transactions.add(transaction, ack)
    return Acknowledge(acks=(), receipt=frame.receipt)


def begin(session: Negotiated, frame: Frame) -> Acknowledge:
    """BEGIN: open a transaction."""
    name = _transaction(frame)
    _check_size(name, session.options.id_bytes_max, errors.ID_TOO_LARGE)
    session.transactions.begin(name)
    return Acknowledge(acks=(), receipt=frame.receipt)


def commit(session: Negotiated, frame: Frame) -> Acknowledge:
    """COMMIT: everything that waited in the transaction, in its order."""
    return Acknowledge(acks=session.transactions.end(_transaction(frame)), receipt=frame.receipt)


def abort(session: Negotiated, frame: Frame) -> Acknowledge:
    """ABORT: what waited in the transaction is dropped; it stays unacknowledged."""
    session.transactions.end(_transaction(frame))
    return Acknowledge(acks=(), receipt=frame.receipt)


def disconnect(session: Negotiated, frame: Frame) -> Disconnect:
    """DISCONNECT: open transactions are dropped."""
    session.transactions.clear()
    return Disconnect(receipt=frame.receipt)


def _required(frame: Frame, name: str, missing: Fault) -> str:
    value = frame.get(name)
    if value is None:
        raise RemoteProtocolError(*missing)
    return value


def _check_size(value: str, bytes_max: int, too_large: Fault) -> None:
    if len(value) > bytes_max or len(value.encode()) > bytes_max:
        raise RemoteProtocolError(*too_large)


def _transaction(frame: Frame) -> str:
    return _required(frame, "transaction", errors.NO_TRANSACTION)


def _common_version(accepted: str | None) -> Version:
    if accepted is None:
        return Version.V1_0
    offered = {item.strip(" \t") for item in accepted.split(",")}
    common = [version for value, version in _VERSIONS if value in offered]
    if not common:
        raise RemoteProtocolError(*errors.NO_COMMON_VERSION, headers=[("version", VERSIONS)])
    return common[-1]


def _heartbeat(options: ConnectionOptions, value: str | None) -> HeartBeat:
    try:
        return requests.negotiate(value, options.heartbeat_ms)
    except ValueError:
        raise RemoteProtocolError(*errors.BAD_HEART_BEAT) from None


def _ack_mode(value: str | None) -> AckMode:
    try:
        return AckMode.AUTO if value is None else AckMode(value)
    except ValueError:
        raise RemoteProtocolError(*errors.BAD_ACK_MODE) from None


def _prefetch(options: ConnectionOptions, frame: Frame) -> int:
    value = frame.get("prefetch-count")
    if value is None:
        return options.prefetch_default
    if not _PREFETCH.fullmatch(value) or not 1 <= int(value) <= options.prefetch_max:
        raise RemoteProtocolError(*errors.BAD_PREFETCH_COUNT)
    return int(value)


def _ack(session: Negotiated, frame: Frame) -> Ack:
    """Read which message is meant: ``id``, then ``message-id``, in any version.

    Either may hold the value of our ``ack`` header, SUBSCRIPTIONNUMBER.MESSAGEID, or a plain message id, to which
    ``subscription`` may be added.
    """
    accepted = frame.command == "ACK"
    named = frame.get("id")
    if named is None:
        named = _required(frame, "message-id", errors.NO_MESSAGE_ID)
    if numbered := _ACK_ID.fullmatch(named):
        return Ack(number=int(numbered[1]), message_id=numbered[2], accepted=accepted)
    subscription = frame.get("subscription")
    if subscription is None:
        return Ack(number=None, message_id=named, accepted=accepted)
    number = session.subscriptions.number_of(subscription)
    return Ack(number=NO_SUBSCRIPTION if number is None else number, message_id=named, accepted=accepted)


@frozen
class Accept:
    """The frame may come: take the step, and be in the next state."""

    step: Step
    then: ConnectionState


_CONNECT = Accept(connect, ConnectionState.OPEN)

TRANSITIONS: Mapping[ConnectionState, Mapping[str, Accept | Fault]] = {
    ConnectionState.AWAITING_CONNECT: {
        "CONNECT": _CONNECT,
        "STOMP": _CONNECT,
    },
    ConnectionState.OPEN: {
        "SUBSCRIBE": Accept(subscribe, ConnectionState.OPEN),
        "UNSUBSCRIBE": Accept(unsubscribe, ConnectionState.OPEN),
        "ACK": Accept(acknowledge, ConnectionState.OPEN),
        "NACK": Accept(acknowledge, ConnectionState.OPEN),
        "BEGIN": Accept(begin, ConnectionState.OPEN),
        "COMMIT": Accept(commit, ConnectionState.OPEN),
        "ABORT": Accept(abort, ConnectionState.OPEN),
        "DISCONNECT": Accept(disconnect, ConnectionState.DISCONNECTED),
        "CONNECT": errors.ALREADY_CONNECTED,
        "STOMP": errors.ALREADY_CONNECTED,
        "SEND": errors.SEND_NOT_ALLOWED,
    },
}
"""Which frame may come when. A state without a row reads nothing."""

OTHERWISE: Mapping[ConnectionState, Fault] = {
    ConnectionState.AWAITING_CONNECT: errors.NOT_CONNECTED,
    ConnectionState.OPEN: errors.UNKNOWN_COMMAND,
}
"""The answer of every absent cell of a row."""


@frozen(kw_only=True)
class ConnectionStatistics:
    """Frames read since the start; what is open and held now."""

    frames: int
    subscriptions: int
    transactions: int
    transaction_acks: int
    held_bytes: int


class Connection:
    """One client's connection. It owns nothing that must be closed.

    ``session``: the name that CONNECTED gives it, a header value that every client reads (``encoder.plain``, else
    ``LocalProtocolError``).
    """

    __slots__ = ("_decoder", "_greeting", "_session", "_state", "options", "session")

    def __init__(self, options: ConnectionOptions, session: str) -> None:
        self.options = options
        self.session = encoder.plain(session)
        self._state = ConnectionState.AWAITING_CONNECT
        self._greeting = Greeting.NOT_DUE
        self._session = Negotiated(options)
        self._decoder = Decoder(options.limits_before_connect)

    @property
    def state(self) -> ConnectionState:
        """What may still be read."""
        return self._state

    @property
    def version(self) -> Version | None:
        """The version that was agreed; None before a CONNECT was accepted."""
        return self._session.version

    def statistics(self) -> ConnectionStatistics:
        """Count what was read and what is held."""
        decoder = self._decoder.statistics()
        return ConnectionStatistics(
            frames=decoder.frames,
            subscriptions=len(self._session.subscriptions),
            transactions=len(self._session.transactions),
            transaction_acks=self._session.transactions.acks_held,
            held_bytes=decoder.held_bytes,
        )

    def receive(self, data: bytes | str) -> list[Request]:
        """Read a piece of input, cut anywhere, and give what the client asks for, in order.

        Subscriptions that this input ends can be looked up until the next call. Raises ``RemoteProtocolError``,
        with the requests before the fault; after that, and after a Disconnect, all input is ignored.
        """
        self._session.subscriptions.forget_ended()
        requests: list[Request] = []
        if self._state not in TRANSITIONS:
            return requests
        octets = data.encode(errors="surrogatepass") if isinstance(data, str) else data
        try:
            for frame in self._decoder.feed(octets):
                requests.append(self._take(frame))
                if self._state is ConnectionState.DISCONNECTED:
                    self._decoder.clear()
                    break
        except RemoteProtocolError as fault:
            self._state = ConnectionState.FAILED
            self._decoder.clear()
            self._session.transactions.clear()
            fault.fulfilled = requests
            raise
        return requests

    def connected(self) -> bytes:
        """Write CONNECTED: once, after a Connect was given."""
        self._expect(Greeting.DUE)
        self._greeting = Greeting.SAID
        return connected(self.options, self.session, self._version)

    def receipt(self, receipt_id: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """Write RECEIPT with further headers of our own, whose values must be ``encoder.plain``."""
        self._expect(Greeting.SAID)
        return receipt(self._version, receipt_id, headers)

    def error(
        self, token: str, prose: str, receipt_id: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bytes:
        """Write ERROR, after which nothing can be read or written. ``token`` and headers must be ``encoder.plain``."""
        self._expect(*Greeting)
        octets = error(self.version, token, prose, receipt_id, headers)
        self._state = ConnectionState.CLOSED
        self._decoder.clear()
        self._session.transactions.clear()
        return octets

    def message_prefix(self, number: int) -> bytes:
        """Write ``encoder.message_prefix`` of a subscription that is open, or was ended by the latest input."""
        subscription = self._subscription(number)
        return encoder.message_prefix(self._version, subscription.destination, subscription.id)

    def message_ack(self, number: int, message_id: str) -> bytes:
        """Write the ``ack`` header line of a message in such a subscription; nothing where it needs none.

        The value is SUBSCRIPTIONNUMBER.MESSAGEID. Only 1.2 has this header, and only modes other than auto need it.
        """
        subscription = self._subscription(number)
        if self._version is not Version.V1_2 or subscription.ack is AckMode.AUTO:
            return b""
        return encoder.header("ack", f"{number}.{message_id}", self._version)

    @property
    def _version(self) -> Version:
        if self._session.version is None:
            message = "no version is agreed"
            raise LocalProtocolError(message)
        return self._session.version

    def _take(self, frame: Frame) -> Request:
        cell = TRANSITIONS[self._state].get(frame.command, OTHERWISE[self._state])
        if isinstance(cell, Fault):
            raise RemoteProtocolError(*cell, receipt_id=frame.receipt)
        try:
            request = cell.step(self._session, frame)
        except RemoteProtocolError as fault:
            fault.receipt_id = frame.receipt
            raise
        if isinstance(request, Connect):
            self._greeting = Greeting.DUE
            self._decoder.version = request.version
            self._decoder.limits = self.options.limits
        self._state = cell.then
        return request

    def _subscription(self, number: int) -> OpenSubscription:
        self._expect(Greeting.SAID)
        subscription = self._session.subscriptions.find(number)
        if subscription is None:
            message = f"there is no subscription {number}"
            raise LocalProtocolError(message)
        return subscription

    def _expect(self, *greetings: Greeting) -> None:
        if self._state is ConnectionState.CLOSED:
            message = "nothing may be written after ERROR"
            raise LocalProtocolError(message)
        if self._greeting not in greetings:
            message = f"this may not be written while CONNECTED is {self._greeting.name}"
            raise LocalProtocolError(message)
