"""The open subscriptions and transactions of one connection. Their limits raise ``RemoteProtocolError``."""

import re
from collections.abc import Iterator
from struct import Struct
from typing import Final

from attrs import define, field, frozen

from airy_trio.stomp import errors
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.requests import NO_SUBSCRIPTION, Ack, AckMode

_MESSAGE_ID: Final = re.compile(r"([a-z0-9]{6})-(0|[1-9][0-9]{0,17})")
_PACKED: Final = Struct("<I6sq")  # subscription, epoch, offset; the offset of a NACK is inverted, and so negative
_ANY_SUBSCRIPTION: Final = 0xFFFF_FFFF
_UNKNOWN: Final = _PACKED.pack(NO_SUBSCRIPTION, b"000000", 0)


@define
class WaitingAcks:
    """Acknowledgements in the client's order, stored in 18 octets each.

    A client may add thousands to the transactions of each of its connections and never commit. So only numbers are
    stored: the subscription's, and the epoch and offset from which the server makes its message ids. A message id of
    another form belongs to no message; such an acknowledgement is only counted, and returned with ``NO_SUBSCRIPTION``.
    """

    _packed: bytearray = field(factory=bytearray)

    def __len__(self) -> int:
        return len(self._packed) // _PACKED.size

    def __contains__(self, ack: object) -> bool:
        return any(ack == waiting for waiting in self)

    def __iter__(self) -> Iterator[Ack]:
        for number, epoch, offset in _PACKED.iter_unpack(self._packed):
            accepted = offset >= 0
            yield Ack(
                number=None if number == _ANY_SUBSCRIPTION else number,
                message_id=f"{epoch.decode()}-{offset if accepted else ~offset}",
                accepted=accepted,
            )

    def append(self, ack: Ack) -> None:
        """Add one acknowledgement."""
        found = _MESSAGE_ID.fullmatch(ack.message_id)
        number = _ANY_SUBSCRIPTION if ack.number is None else ack.number
        if found is None or (ack.number is not None and number >= _ANY_SUBSCRIPTION):
            self._packed += _UNKNOWN
        else:
            offset = int(found[2])
            self._packed += _PACKED.pack(number, found[1].encode(), offset if ack.accepted else ~offset)


class Transactions:
    """Open transactions by the client's names. ``acks_max`` limits the acknowledgements of all of them together."""

    __slots__ = (
        "_acks_held",
        "_acks_max",
        "_open",
        "_transactions_max",
    )

    def __init__(self, *, transactions_max: int, acks_max: int) -> None:
        self._transactions_max = transactions_max
        self._acks_max = acks_max
        self._open: dict[str, WaitingAcks] = {}
        self._acks_held = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def acks_held(self) -> int:
        """The number of acknowledgements in all open transactions."""
        return self._acks_held

    def begin(self, name: str) -> None:
        """Open a transaction."""
        if name in self._open:
            raise RemoteProtocolError(*errors.TRANSACTION_BEGUN_TWICE)
        if len(self._open) == self._transactions_max:
            raise RemoteProtocolError(*errors.TOO_MANY_TRANSACTIONS)
        self._open[name] = WaitingAcks()

    def add(self, name: str, ack: Ack) -> None:
        """Store an acknowledgement until its transaction ends."""
        acks = self._acks_of(name)
        if self._acks_held == self._acks_max:
            raise RemoteProtocolError(*errors.TOO_MANY_TRANSACTION_ACKS)
        acks.append(ack)
        self._acks_held += 1

    def end(self, name: str) -> WaitingAcks:
        """Close a transaction and return its acknowledgements in order. COMMIT uses them, ABORT does not."""
        acks = self._acks_of(name)
        del self._open[name]
        self._acks_held -= len(acks)
        return acks

    def clear(self) -> None:
        """Drop all open transactions, as at the end of the connection (STOMP 1.2, "BEGIN")."""
        self._open.clear()
        self._acks_held = 0

    def _acks_of(self, name: str) -> WaitingAcks:
        try:
            return self._open[name]
        except KeyError:
            raise RemoteProtocolError(*errors.UNKNOWN_TRANSACTION) from None


@frozen(kw_only=True)
class OpenSubscription:
    """A subscription as the client opened it. ``prefetch``: messages in flight; 0 with ``AckMode.AUTO``."""

    id: str | None
    destination: str
    ack: AckMode
    prefetch: int = 0


class OpenSubscriptions:
    """Open subscriptions, numbered from 1 in the order in which they were opened. A number is never reused.

    An ended subscription can be found until ``forget_ended``: its SUBSCRIBE may have arrived in the same input as its
    UNSUBSCRIBE, and is then answered after both were read.
    """

    __slots__ = (
        "_ended",
        "_in_flight_max",
        "_last_number",
        "_numbers",
        "_open",
        "_prefetch",
        "_subscriptions_max",
    )

    def __init__(self, *, subscriptions_max: int, in_flight_max: int) -> None:
        self._in_flight_max = in_flight_max
        self._prefetch = 0  # sum over the open subscriptions
        self._subscriptions_max = subscriptions_max
        self._open: dict[int, OpenSubscription] = {}
        self._ended: dict[int, OpenSubscription] | None = None  # rarely needed, so the dict is not allocated in advance
        self._numbers: dict[str, int] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, subscription: OpenSubscription) -> int:
        """Add a subscription and return its number.

        Raises ``RemoteProtocolError`` for an id that is open, beyond ``subscriptions_max``, and if the sum of
        ``prefetch`` would exceed ``in_flight_max``.
        """
        if subscription.id in self._numbers:
            raise RemoteProtocolError(*errors.DUPLICATE_SUBSCRIPTION)
        if len(self._open) == self._subscriptions_max:
            raise RemoteProtocolError(*errors.TOO_MANY_SUBSCRIPTIONS)
        if self._prefetch + subscription.prefetch > self._in_flight_max:
            raise RemoteProtocolError(*errors.TOO_MUCH_PREFETCH)
        self._prefetch += subscription.prefetch
        self._last_number += 1
        self._open[self._last_number] = subscription
        if subscription.id is not None:
            self._numbers[subscription.id] = self._last_number
        return self._last_number

    def number_of(self, subscription_id: str) -> int | None:
        """Return the number of the open subscription with this id, if there is one."""
        return self._numbers.get(subscription_id)

    def numbers_to(self, destination: str) -> tuple[int, ...]:
        """Return the numbers of all open subscriptions to a destination, oldest first."""
        return tuple(number for number, one in self._open.items() if one.destination == destination)

    def end(self, number: int) -> None:
        """Close an open subscription."""
        subscription = self._open.pop(number)
        self._prefetch -= subscription.prefetch
        if subscription.id is not None:
            del self._numbers[subscription.id]
        if self._ended is None:
            self._ended = {}
        self._ended[number] = subscription

    def forget_ended(self) -> None:
        """Drop the ended subscriptions."""
        self._ended = None

    def find(self, number: int) -> OpenSubscription | None:
        """Return a subscription that is open, or that ended since the last ``forget_ended``."""
        return self._open.get(number) or (None if self._ended is None else self._ended.get(number))
