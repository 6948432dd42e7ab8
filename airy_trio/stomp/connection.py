"""One STOMP connection as the server sees it: a state machine without I/O and without a clock.

``Connection.receive`` turns octets of the client into requests, the other methods turn answers into octets. Reading and
writing advance separately, so each has its own state.

Reading (``ConnectionState``):

``AWAITING_CONNECT``
    The initial state. Only CONNECT or STOMP may arrive, and the smaller limits apply. Headers are not unescaped,
    because no version is agreed yet.
``OPEN``
    Every client frame except CONNECT and STOMP may arrive. Frames may follow CONNECT in the same input, so frames are
    decoded one by one: each with the version and the limits that the frame before it has set.
``DISCONNECTED``
    DISCONNECT was read. Some clients send frames after it; they are ignored without being decoded.
``FAILED``
    The client broke the protocol. The start of its next frame cannot be found, so all further input is ignored.
``CLOSED``
    ERROR was written. All further input is ignored.

Writing (``Handshake``):

``NOT_STARTED``
    No CONNECT was accepted: only ERROR may be written.
``CONNECT_RECEIVED``
    CONNECTED must be written next, once; or ERROR.
``CONNECTED_SENT``
    RECEIPT, MESSAGE and ERROR may be written. ERROR is the last frame in every state.

One rule joins the two: requests that were read before a DISCONNECT or a fault took effect, and are answered. A caller
therefore handles each piece of input in this order:

1. Call ``receive``. It returns all requests of this input, or raises ``RemoteProtocolError``, whose ``fulfilled`` has
   the requests before the fault.
2. Answer the requests in their order: ``connected`` for Connect, ``receipt`` for a request with a receipt id,
   ``message_prefix`` for the messages of a new subscription.
3. After a fault write ``error`` and end the connection. Otherwise continue with the next input.

=====================  ======================  =================================================================
frame                  in AWAITING_CONNECT     in OPEN
=====================  ======================  =================================================================
CONNECT, STOMP         Connect → OPEN          400-already-connected → FAILED
SUBSCRIBE              400-not-connected       Subscribe
UNSUBSCRIBE            400-not-connected       Unsubscribe; without numbers if the id is unknown
ACK, NACK              400-not-connected       Acknowledge; empty inside a transaction
BEGIN, ABORT           400-not-connected       Acknowledge, empty
COMMIT                 400-not-connected       Acknowledge with all acknowledgements of the transaction
DISCONNECT             400-not-connected       Disconnect → DISCONNECTED
SEND                   400-not-connected       403-send-not-allowed → FAILED: clients never publish here
any other command      400-not-connected       400-unknown-command → FAILED; includes the commands of servers
malformed, too large   400-…, 413-… → FAILED   400-…, 413-… → FAILED
=====================  ======================  =================================================================

``TRANSITIONS`` and ``OTHERWISE`` are this table. Which request a frame becomes depends on its command only: there is
one function for each at the end of the module.

Sources: STOMP 1.0, 1.1 and 1.2; wire contract, "STOMP, line by line".
"""

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from typing import Final

from attrs import Attribute, field, frozen, validators

from airy_trio.stomp import codec, errors
from airy_trio.stomp.codec import Decoder, Limits
from airy_trio.stomp.errors import Fault, LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.frames import (
    NO_SUBSCRIPTION,
    REPLAYS,
    Ack,
    AckMode,
    Acknowledge,
    Connect,
    Disconnect,
    Frame,
    HeartBeat,
    Request,
    Subscribe,
    Unsubscribe,
    Version,
    negotiate,
)
from airy_trio.stomp.subscriptions import OpenSubscription, OpenSubscriptions, Transactions

IN_FLIGHT_DEFAULT: Final = 20_000
"""Unacknowledged messages of one connection, unless all its subscriptions with the default prefetch need more."""
# A header line has room for a bearer token of 2 KiB, the longest one that `[auth] tokens` allows.
LIMITS_BEFORE_CONNECT: Final = Limits(
    frame_bytes_max=4_096, header_count_max=32, header_line_bytes_max=3_072, command_bytes_max=16
)


class ConnectionState(Enum):
    """What may still be read; see the module's page."""

    AWAITING_CONNECT = auto()
    OPEN = auto()
    DISCONNECTED = auto()
    FAILED = auto()
    CLOSED = auto()


class Handshake(Enum):
    """What may be written; see the module's page."""

    NOT_STARTED = auto()
    CONNECT_RECEIVED = auto()
    CONNECTED_SENT = auto()


TRANSITIONS: Mapping[ConnectionState, Mapping[str, ConnectionState | Fault]] = {
    ConnectionState.AWAITING_CONNECT: {
        "CONNECT": ConnectionState.OPEN,
        "STOMP": ConnectionState.OPEN,
    },
    ConnectionState.OPEN: {
        "SUBSCRIBE": ConnectionState.OPEN,
        "UNSUBSCRIBE": ConnectionState.OPEN,
        "ACK": ConnectionState.OPEN,
        "NACK": ConnectionState.OPEN,
        "BEGIN": ConnectionState.OPEN,
        "COMMIT": ConnectionState.OPEN,
        "ABORT": ConnectionState.OPEN,
        "DISCONNECT": ConnectionState.DISCONNECTED,
        "CONNECT": errors.ALREADY_CONNECTED,
        "STOMP": errors.ALREADY_CONNECTED,
        "SEND": errors.SEND_NOT_ALLOWED,
    },
}
"""The next state or the fault, by state and command. A state without a row ignores all input."""

OTHERWISE: Mapping[ConnectionState, Fault] = {
    ConnectionState.AWAITING_CONNECT: errors.NOT_CONNECTED,
    ConnectionState.OPEN: errors.UNKNOWN_COMMAND,
}
"""The fault for every command that a row of ``TRANSITIONS`` does not list."""

_positive = validators.ge(1)


def _is_plain(_instance: object, _attribute: "Attribute[str]", value: str) -> None:
    codec.plain(value)


@frozen(kw_only=True)
class ConnectionOptions:
    """Limits of a connection, and how the server introduces itself. One object serves all connections.

    ``server`` must be ``codec.plain``, else ``LocalProtocolError`` is raised. ``heartbeat_ms`` is offered in both
    directions; 0 is none. ``limits_before_connect`` apply to the first frame, ``limits`` to those after it.

    ``id_bytes_max`` limits ids of subscriptions and names of transactions. These and destinations are stored while they
    are open, and are counted in octets of UTF-8, unescaped. ``transaction_acks_max`` limits the acknowledgements in
    all open transactions together. ``in_flight_max`` limits the sum of ``prefetch-count`` over the subscriptions that
    acknowledge; the default allows ``prefetch_default`` for each.
    """

    server: str = field(validator=_is_plain)
    heartbeat_ms: int = field(default=30_000, validator=validators.ge(0))

    limits: Limits = field(factory=Limits)
    limits_before_connect: Limits = LIMITS_BEFORE_CONNECT

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


class Connection:
    """The connection of one client. Owns nothing that must be closed.

    ``session`` is the header of this name in CONNECTED; it must be ``codec.plain``, else ``LocalProtocolError`` is
    raised. ``state``, ``version`` (None until a CONNECT was accepted), ``subscriptions`` and ``transactions`` are to be
    read by the caller; only this module changes them.
    """

    __slots__ = ("_decoder", "_handshake", "options", "session", "state", "subscriptions", "transactions", "version")

    def __init__(self, options: ConnectionOptions, session: str) -> None:
        self.options = options
        self.session = codec.plain(session)
        self.state = ConnectionState.AWAITING_CONNECT
        self.version: Version | None = None
        self.subscriptions = OpenSubscriptions(
            subscriptions_max=options.subscriptions_max, in_flight_max=options.in_flight_max
        )
        self.transactions = Transactions(
            transactions_max=options.transactions_max, acks_max=options.transaction_acks_max
        )
        self._handshake = Handshake.NOT_STARTED
        self._decoder = Decoder(options.limits_before_connect)

    @property
    def held_bytes(self) -> int:
        """Octets of an incomplete frame."""
        return self._decoder.held_bytes

    def receive(self, data: bytes | str) -> list[Request]:
        """Read a piece of input, cut anywhere, and return the client's requests in order.

        Raises ``RemoteProtocolError`` with the requests before the fault. After that and after a Disconnect all input
        is ignored.
        """
        requests: list[Request] = []
        if self.state not in TRANSITIONS:
            return requests
        # Half a surrogate pair, which only text can hold, becomes octets that the decoder rejects as not UTF-8.
        octets = data.encode(errors="surrogatepass") if isinstance(data, str) else data
        try:
            for frame in self._decoder.feed(octets):
                requests.append(self._handle(frame))
                if self.state is ConnectionState.DISCONNECTED:
                    self._decoder.clear()
                    break
        except RemoteProtocolError as fault:
            self._stop(ConnectionState.FAILED)
            fault.fulfilled = requests
            raise
        return requests

    def connected(self) -> bytes:
        """Encode CONNECTED: once, after a Connect was returned."""
        self._expect(Handshake.CONNECT_RECEIVED)
        self._handshake = Handshake.CONNECTED_SENT
        return codec.own_frame(
            "CONNECTED",
            ("version", self._agreed_version().value),
            ("session", self.session),
            ("server", self.options.server),
            # A client is known to crash without this header, so 1.0 gets it as well.
            ("heart-beat", f"{self.options.heartbeat_ms},{self.options.heartbeat_ms}"),
        )

    def receipt(self, receipt_id: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """Encode RECEIPT. The values of ``headers`` must be ``codec.plain``."""
        self._expect(Handshake.CONNECTED_SENT)
        first = codec.header("receipt-id", receipt_id, self._agreed_version())
        return codec.own_frame("RECEIPT", *headers, first=first)

    def error(
        self, token: str, prose: str, receipt_id: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bytes:
        """Encode ERROR, after which nothing can be read or written.

        ``token`` is its ``message`` header and ``prose`` its body. The token and the values of ``headers`` must be
        ``codec.plain``.
        """
        self._expect(*Handshake)
        body = prose.encode()
        own = [("message", token), ("content-type", "text/plain"), ("content-length", str(len(body))), *headers]
        lines = [(name, codec.plain(value)) for name, value in own]
        # The client's own text, so it need not be plain: it is escaped by the rules of the client's version.
        if receipt_id is not None:
            lines.append(("receipt-id", receipt_id))
        octets = codec.encode(Frame("ERROR", tuple(lines), body), self.version)
        self._stop(ConnectionState.CLOSED)
        return octets

    def message_prefix(self, request: Subscribe) -> bytes:
        """Encode ``codec.message_prefix`` of a subscription."""
        self._expect(Handshake.CONNECTED_SENT)
        return codec.message_prefix(self._agreed_version(), request.destination, request.id)

    def message_ack(self, number: int, message_id: str) -> bytes:
        """Encode the ``ack`` header line of a message that the client has to acknowledge; empty before 1.2.

        The value is SUBSCRIPTIONNUMBER.MESSAGEID.
        """
        self._expect(Handshake.CONNECTED_SENT)
        return codec.header("ack", f"{number}.{message_id}", self.version) if self.version is Version.V1_2 else b""

    def _handle(self, frame: Frame) -> Request:
        cell = TRANSITIONS[self.state].get(frame.command, OTHERWISE[self.state])
        if isinstance(cell, Fault):
            raise RemoteProtocolError(*cell, receipt_id=frame.receipt)
        try:
            request = _STEPS[frame.command](self, frame)
        except RemoteProtocolError as fault:
            fault.receipt_id = frame.receipt
            raise
        if isinstance(request, Connect):
            self._handshake = Handshake.CONNECT_RECEIVED
            self._decoder.version = request.version
            self._decoder.limits = self.options.limits
        self.state = cell
        return request

    def _stop(self, state: ConnectionState) -> None:
        self.state = state
        self._decoder.clear()
        self.transactions.clear()

    def _agreed_version(self) -> Version:
        if self.version is None:
            raise LocalProtocolError("no version is agreed")
        return self.version

    def _expect(self, *allowed: Handshake) -> None:
        if self.state is ConnectionState.CLOSED:
            raise LocalProtocolError("nothing may be written after ERROR")
        if self._handshake not in allowed:
            raise LocalProtocolError(f"this frame may not be written while the handshake is {self._handshake.name}")


Step = Callable[[Connection, Frame], Request]
"""Apply a frame to the connection and return its request. Raises ``RemoteProtocolError`` for a missing or wrong header.

Unknown headers, and bodies, are ignored.
"""

VERSIONS: Final = ",".join(version.value for version in Version)
"""The supported versions, as the ``version`` header of an ERROR lists them."""

# As `Connection.message_ack` writes it; a message id may contain any character, also a line end.
_ACK_ID: Final = re.compile(r"([1-9][0-9]{0,17})\.(.+)", re.DOTALL)
_PREFETCH: Final = re.compile(r"[0-9]{1,18}")


def connect(connection: Connection, frame: Frame) -> Connect:
    """CONNECT, STOMP: agree on version and heart-beats (STOMP 1.2, "Protocol Negotiation")."""
    version = _common_version(frame.get("accept-version"))
    get = frame.get
    if version is Version.V1_0:
        # Clients of 1.0 may pad their values. The decoder did not know yet that this is one, so it has not trimmed.
        get = Frame("", tuple((name, value.strip(" \t")) for name, value in frame.headers)).get
        heartbeat = HeartBeat()
    else:
        try:
            heartbeat = negotiate(get("heart-beat"), connection.options.heartbeat_ms)
        except ValueError:
            raise RemoteProtocolError(*errors.BAD_HEART_BEAT) from None
    connection.version = version
    # Names of headers are case-sensitive in STOMP, but not in HTTP, from which this one comes.
    authorization = get("Authorization")
    return Connect(
        version=version,
        login=get("login"),
        passcode=get("passcode"),
        authorization=get("authorization") if authorization is None else authorization,
        heartbeat=heartbeat,
    )


def subscribe(connection: Connection, frame: Frame) -> Subscribe:
    """SUBSCRIBE. ``id`` is required from 1.1 on."""
    options = connection.options
    destination = _required(frame, "destination", errors.NO_DESTINATION)
    _check_size(destination, options.destination_bytes_max, errors.DESTINATION_TOO_LARGE)
    subscription_id = frame.get("id") if connection.version is Version.V1_0 else _required(frame, "id", errors.NO_ID)
    _check_size(subscription_id or "", options.id_bytes_max, errors.ID_TOO_LARGE)
    named = frame.get("ack")
    try:
        ack = AckMode.AUTO if named is None else AckMode(named)
    except ValueError:
        raise RemoteProtocolError(*errors.BAD_ACK_MODE) from None
    prefetch = options.prefetch_default if ack is AckMode.AUTO else _prefetch(options, frame)
    replay = frame.get("replay")
    if replay not in (None, *REPLAYS):
        raise RemoteProtocolError(*errors.BAD_REPLAY)
    number = connection.subscriptions.open(
        OpenSubscription(id=subscription_id, destination=destination, prefetch=0 if ack is AckMode.AUTO else prefetch)
    )
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


def unsubscribe(connection: Connection, frame: Frame) -> Unsubscribe:
    """UNSUBSCRIBE by ``id``. In 1.0 also by ``destination``, which ends all subscriptions to it."""
    subscriptions = connection.subscriptions
    if connection.version is Version.V1_0 and frame.get("id") is None:
        numbers = subscriptions.numbers_to(_required(frame, "destination", errors.NO_DESTINATION))
    else:
        number = subscriptions.number_of(_required(frame, "id", errors.NO_ID))
        numbers = () if number is None else (number,)
    for number in numbers:
        subscriptions.end(number)
    return Unsubscribe(numbers=numbers, receipt=frame.receipt)


def acknowledge(connection: Connection, frame: Frame) -> Acknowledge:
    """ACK, NACK: takes effect at once, or with ``transaction`` at its COMMIT.

    The message is named by ``id``, else by ``message-id``, in any version. Either may be the value of our ``ack``
    header, or a plain message id, to which ``subscription`` may be added.
    """
    named = frame.get("id")
    if named is None:
        named = _required(frame, "message-id", errors.NO_MESSAGE_ID)
    message_id, number = named, None
    # No message id of ours has a dot, so it is never taken for the value of an ``ack`` header.
    if numbered := _ACK_ID.fullmatch(named):
        number, message_id = int(numbered[1]), numbered[2]
    elif (subscription := frame.get("subscription")) is not None:
        number = connection.subscriptions.number_of(subscription) or NO_SUBSCRIPTION
    ack = Ack(number=number, message_id=message_id, accepted=frame.command == "ACK")
    transaction = frame.get("transaction")
    if transaction is None:
        return Acknowledge(acks=(ack,), receipt=frame.receipt)
    connection.transactions.add(transaction, ack)
    return Acknowledge(acks=(), receipt=frame.receipt)


def begin(connection: Connection, frame: Frame) -> Acknowledge:
    """BEGIN: open a transaction."""
    name = _required(frame, "transaction", errors.NO_TRANSACTION)
    _check_size(name, connection.options.id_bytes_max, errors.ID_TOO_LARGE)
    connection.transactions.begin(name)
    return Acknowledge(acks=(), receipt=frame.receipt)


def commit(connection: Connection, frame: Frame) -> Acknowledge:
    """COMMIT: return the acknowledgements of the transaction in their order."""
    acks = connection.transactions.end(_required(frame, "transaction", errors.NO_TRANSACTION))
    return Acknowledge(acks=acks, receipt=frame.receipt)


def abort(connection: Connection, frame: Frame) -> Acknowledge:
    """ABORT: drop the acknowledgements of the transaction; their messages stay unacknowledged."""
    connection.transactions.end(_required(frame, "transaction", errors.NO_TRANSACTION))
    return Acknowledge(acks=(), receipt=frame.receipt)


def disconnect(connection: Connection, frame: Frame) -> Disconnect:
    """DISCONNECT: drop open transactions."""
    connection.transactions.clear()
    return Disconnect(receipt=frame.receipt)


_STEPS: Final[Mapping[str, Step]] = {
    "CONNECT": connect,
    "STOMP": connect,
    "SUBSCRIBE": subscribe,
    "UNSUBSCRIBE": unsubscribe,
    "ACK": acknowledge,
    "NACK": acknowledge,
    "BEGIN": begin,
    "COMMIT": commit,
    "ABORT": abort,
    "DISCONNECT": disconnect,
}


def _required(frame: Frame, name: str, missing: Fault) -> str:
    value = frame.get(name)
    if value is None:
        raise RemoteProtocolError(*missing)
    return value


def _check_size(value: str, bytes_max: int, too_large: Fault) -> None:
    # A character has at least one octet, so a text that is certainly too long need not be encoded.
    if len(value) > bytes_max or len(value.encode()) > bytes_max:
        raise RemoteProtocolError(*too_large)


def _common_version(accepted: str | None) -> Version:
    """Return the highest version that both sides speak. A client that sends no ``accept-version`` speaks 1.0."""
    if accepted is None:
        return Version.V1_0
    offered = {item.strip(" \t") for item in accepted.split(",")}
    common = [version for version in Version if version.value in offered]
    if not common:
        raise RemoteProtocolError(*errors.NO_COMMON_VERSION, headers=[("version", VERSIONS)])
    return common[-1]


def _prefetch(options: ConnectionOptions, frame: Frame) -> int:
    value = frame.get("prefetch-count")
    if value is None:
        return options.prefetch_default
    if not _PREFETCH.fullmatch(value) or not 1 <= int(value) <= options.prefetch_max:
        raise RemoteProtocolError(*errors.BAD_PREFETCH_COUNT)
    return int(value)
