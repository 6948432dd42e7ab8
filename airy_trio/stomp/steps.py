"""What each frame of a client does to the connection and what it asks for; whether it may come now is decided before.

A step reads one frame and gives one request. It raises ``RemoteProtocolError`` for a header that is missing or
wrong. Headers that it does not know, and bodies, are passed over.
"""

import re
from collections.abc import Callable

from attrs import define, field

from airy_trio.stomp import faults, heartbeats
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.faults import Fault
from airy_trio.stomp.frames import Frame, Version
from airy_trio.stomp.heartbeats import HeartBeat
from airy_trio.stomp.options import ConnectionOptions
from airy_trio.stomp.requests import (
    NO_SUBSCRIPTION,
    Ack,
    AckMode,
    Acknowledge,
    Connect,
    Disconnect,
    Request,
    Subscribe,
    Unsubscribe,
)
from airy_trio.stomp.subscriptions import Subscription, Subscriptions
from airy_trio.stomp.transactions import Transactions

VERSIONS = ",".join(version.value for version in Version)
"""Our versions, as ``accept-version`` and the ERROR's ``version`` write them."""

_VERSIONS = tuple((version.value, version) for version in Version)

_ACK_ID = re.compile(r"([1-9][0-9]{0,17})\.(.+)", re.DOTALL)
_PREFETCH = re.compile(r"[0-9]{1,18}")
_REPLAYS = (None, "none", "all")


@define
class Session:
    """What stands between client and server: the version, once there is one, subscriptions and transactions."""

    options: ConnectionOptions
    version: Version | None = None
    subscriptions: Subscriptions = field(init=False)
    transactions: Transactions = field(init=False)

    def __attrs_post_init__(self) -> None:
        options = self.options
        self.subscriptions = Subscriptions(
            subscriptions_max=options.subscriptions_max, in_flight_max=options.in_flight_max
        )
        self.transactions = Transactions(
            transactions_max=options.transactions_max, acks_max=options.transaction_acks_max
        )


Step = Callable[[Session, Frame], Request]
"""What a frame does: it changes the session and gives a request, or raises ``RemoteProtocolError``."""


def connect(session: Session, frame: Frame) -> Connect:
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


def subscribe(session: Session, frame: Frame) -> Subscribe:
    """SUBSCRIBE: ``id`` is required from 1.1 on; ``ack``, ``prefetch-count`` and ``replay`` must be what we know."""
    options = session.options
    destination = _required(frame, "destination", faults.NO_DESTINATION)
    _check_size(destination, options.destination_bytes_max, faults.DESTINATION_TOO_LARGE)
    subscription_id = frame.get("id") if session.version is Version.V1_0 else _required(frame, "id", faults.NO_ID)
    _check_size(subscription_id or "", options.id_bytes_max, faults.ID_TOO_LARGE)
    ack = _ack_mode(frame.get("ack"))
    prefetch = options.prefetch_default if ack is AckMode.AUTO else _prefetch(options, frame)
    replay = frame.get("replay")
    if replay not in _REPLAYS:
        raise RemoteProtocolError(*faults.BAD_REPLAY)
    subscription = Subscription(
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


def unsubscribe(session: Session, frame: Frame) -> Unsubscribe:
    """UNSUBSCRIBE: by ``id``; in 1.0 also by ``destination``, which ends all subscriptions to it."""
    subscriptions = session.subscriptions
    if session.version is Version.V1_0 and frame.get("id") is None:
        numbers = subscriptions.numbers_to(_required(frame, "destination", faults.NO_DESTINATION))
    else:
        number = subscriptions.number_of(_required(frame, "id", faults.NO_ID))
        numbers = () if number is None else (number,)
    for number in numbers:
        subscriptions.end(number)
    return Unsubscribe(numbers=numbers, receipt=frame.receipt)


def acknowledge(session: Session, frame: Frame) -> Acknowledge:
    """ACK, NACK: at once, or with ``transaction`` at its COMMIT."""
    ack = _ack(session, frame)
    transaction = frame.get("transaction")
    if transaction is None:
        return Acknowledge(acks=(ack,), receipt=frame.receipt)
    session.transactions.add(transaction, ack)
    return Acknowledge(acks=(), receipt=frame.receipt)


def begin(session: Session, frame: Frame) -> Acknowledge:
    """BEGIN: open a transaction."""
    name = _transaction(frame)
    _check_size(name, session.options.id_bytes_max, faults.ID_TOO_LARGE)
    session.transactions.begin(name)
    return Acknowledge(acks=(), receipt=frame.receipt)


def commit(session: Session, frame: Frame) -> Acknowledge:
    """COMMIT: everything that waited in the transaction, in its order."""
    return Acknowledge(acks=session.transactions.end(_transaction(frame)), receipt=frame.receipt)


def abort(session: Session, frame: Frame) -> Acknowledge:
    """ABORT: what waited in the transaction is dropped; it stays unacknowledged."""
    session.transactions.end(_transaction(frame))
    return Acknowledge(acks=(), receipt=frame.receipt)


def disconnect(session: Session, frame: Frame) -> Disconnect:
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
    return _required(frame, "transaction", faults.NO_TRANSACTION)


def _common_version(accepted: str | None) -> Version:
    if accepted is None:
        return Version.V1_0
    offered = {item.strip(" \t") for item in accepted.split(",")}
    common = [version for value, version in _VERSIONS if value in offered]
    if not common:
        raise RemoteProtocolError(*faults.NO_COMMON_VERSION, headers=[("version", VERSIONS)])
    return common[-1]


def _heartbeat(options: ConnectionOptions, value: str | None) -> HeartBeat:
    try:
        return heartbeats.negotiate(value, options.heartbeat_ms)
    except ValueError:
        raise RemoteProtocolError(*faults.BAD_HEART_BEAT) from None


def _ack_mode(value: str | None) -> AckMode:
    try:
        return AckMode.AUTO if value is None else AckMode(value)
    except ValueError:
        raise RemoteProtocolError(*faults.BAD_ACK_MODE) from None


def _prefetch(options: ConnectionOptions, frame: Frame) -> int:
    value = frame.get("prefetch-count")
    if value is None:
        return options.prefetch_default
    if not _PREFETCH.fullmatch(value) or not 1 <= int(value) <= options.prefetch_max:
        raise RemoteProtocolError(*faults.BAD_PREFETCH_COUNT)
    return int(value)


def _ack(session: Session, frame: Frame) -> Ack:
    """Read which message is meant: ``id``, then ``message-id``, in any version.

    Either may hold the value of our ``ack`` header, SUBSCRIPTIONNUMBER.MESSAGEID, or a plain message id, to which
    ``subscription`` may be added.
    """
    accepted = frame.command == "ACK"
    named = frame.get("id")
    if named is None:
        named = _required(frame, "message-id", faults.NO_MESSAGE_ID)
    if numbered := _ACK_ID.fullmatch(named):
        return Ack(number=int(numbered[1]), message_id=numbered[2], accepted=accepted)
    subscription = frame.get("subscription")
    if subscription is None:
        return Ack(number=None, message_id=named, accepted=accepted)
    number = session.subscriptions.number_of(subscription)
    return Ack(number=NO_SUBSCRIPTION if number is None else number, message_id=named, accepted=accepted)
