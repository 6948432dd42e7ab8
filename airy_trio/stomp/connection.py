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
"""

from collections.abc import Iterable, Mapping

from attrs import frozen

from airy_trio.stomp import encoder, faults, replies, steps
from airy_trio.stomp.decoder import Decoder
from airy_trio.stomp.errors import LocalProtocolError, RemoteProtocolError
from airy_trio.stomp.faults import Fault
from airy_trio.stomp.frames import Frame, Version
from airy_trio.stomp.options import ConnectionOptions
from airy_trio.stomp.requests import AckMode, Connect, Request
from airy_trio.stomp.states import Greeting, State
from airy_trio.stomp.steps import Session, Step
from airy_trio.stomp.subscriptions import Subscription


@frozen
class Accept:
    """The frame may come: take the step, and be in the next state."""

    step: Step
    then: State


_CONNECT = Accept(steps.connect, State.OPEN)

TRANSITIONS: Mapping[State, Mapping[str, Accept | Fault]] = {
    State.AWAITING_CONNECT: {
        "CONNECT": _CONNECT,
        "STOMP": _CONNECT,
    },
    State.OPEN: {
        "SUBSCRIBE": Accept(steps.subscribe, State.OPEN),
        "UNSUBSCRIBE": Accept(steps.unsubscribe, State.OPEN),
        "ACK": Accept(steps.acknowledge, State.OPEN),
        "NACK": Accept(steps.acknowledge, State.OPEN),
        "BEGIN": Accept(steps.begin, State.OPEN),
        "COMMIT": Accept(steps.commit, State.OPEN),
        "ABORT": Accept(steps.abort, State.OPEN),
        "DISCONNECT": Accept(steps.disconnect, State.DISCONNECTED),
        "CONNECT": faults.ALREADY_CONNECTED,
        "STOMP": faults.ALREADY_CONNECTED,
        "SEND": faults.SEND_NOT_ALLOWED,
    },
}
"""Which frame may come when. A state without a row reads nothing."""

OTHERWISE: Mapping[State, Fault] = {State.AWAITING_CONNECT: faults.NOT_CONNECTED, State.OPEN: faults.UNKNOWN_COMMAND}
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
        self._state = State.AWAITING_CONNECT
        self._greeting = Greeting.NOT_DUE
        self._session = Session(options)
        self._decoder = Decoder(options.limits_before_connect)

    @property
    def state(self) -> State:
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
                if self._state is State.DISCONNECTED:
                    self._decoder.clear()
                    break
        except RemoteProtocolError as fault:
            self._state = State.FAILED
            self._decoder.clear()
            self._session.transactions.clear()
            fault.fulfilled = requests
            raise
        return requests

    def connected(self) -> bytes:
        """Write CONNECTED: once, after a Connect was given."""
        self._expect(Greeting.DUE)
        self._greeting = Greeting.SAID
        return replies.connected(self.options, self.session, self._version)

    def receipt(self, receipt_id: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """Write RECEIPT with further headers of our own, whose values must be ``encoder.plain``."""
        self._expect(Greeting.SAID)
        return replies.receipt(self._version, receipt_id, headers)

    def error(
        self, token: str, prose: str, receipt_id: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bytes:
        """Write ERROR, after which nothing can be read or written. ``token`` and headers must be ``encoder.plain``."""
        self._expect(*Greeting)
        octets = replies.error(self.version, token, prose, receipt_id, headers)
        self._state = State.CLOSED
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

    def _subscription(self, number: int) -> Subscription:
        self._expect(Greeting.SAID)
        subscription = self._session.subscriptions.find(number)
        if subscription is None:
            message = f"there is no subscription {number}"
            raise LocalProtocolError(message)
        return subscription

    def _expect(self, *greetings: Greeting) -> None:
        if self._state is State.CLOSED:
            message = "nothing may be written after ERROR"
            raise LocalProtocolError(message)
        if self._greeting not in greetings:
            message = f"this may not be written while CONNECTED is {self._greeting.name}"
            raise LocalProtocolError(message)
