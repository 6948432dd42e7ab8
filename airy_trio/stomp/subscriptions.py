"""The open subscriptions and transactions of one connection. Their limits raise ``RemoteProtocolError``."""

import re
from collections.abc import Iterator
from struct import Struct
from typing import Final

from attrs import define, field, frozen

from airy_trio.stomp import errors
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.frames import NO_SUBSCRIPTION, Ack

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
        # The subscriptions of a connection are counted from 1, so a number that does not fit belongs to none.
        if found is None or (ack.number is not None and number >= _ANY_SUBSCRIPTION):
            self._packed += _UNKNOWN
        else:
            offset = int(found[2])
            self._packed += _PACKED.pack(number, found[1].encode(), offset if ack.accepted else ~offset)


@define(eq=False, weakref_slot=False)
class Transactions:
    """Open transactions by the client's names. All of them together have at most ``acks_max`` acknowledgements."""

    _transactions_max: int
    _acks_max: int
    _open: dict[str, WaitingAcks] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def acks_held(self) -> int:
        """The number of acknowledgements in all open transactions."""
        return sum(map(len, self._open.values()))

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
        if self.acks_held == self._acks_max:
            raise RemoteProtocolError(*errors.TOO_MANY_TRANSACTION_ACKS)
        acks.append(ack)

    def end(self, name: str) -> WaitingAcks:
        """Close a transaction and return its acknowledgements in order. COMMIT uses them, ABORT does not."""
        acks = self._acks_of(name)
        del self._open[name]
        return acks

    def clear(self) -> None:
        """Drop all open transactions, as at the end of the connection (STOMP 1.2, "BEGIN")."""
        self._open.clear()

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
    prefetch: int = 0


@define(eq=False, weakref_slot=False)
class OpenSubscriptions:
    """Open subscriptions, numbered from 1 in the order in which they were opened. A number is never reused."""

    _subscriptions_max: int
    _in_flight_max: int
    _open: dict[int, OpenSubscription] = field(factory=dict, init=False)
    _last_number: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, subscription: OpenSubscription) -> int:
        """Add a subscription and return its number.

        Raises ``RemoteProtocolError`` for an id that is open, beyond ``subscriptions_max``, and if the sum of
        ``prefetch`` would exceed ``in_flight_max``.
        """
        if subscription.id is not None and self.number_of(subscription.id) is not None:
            raise RemoteProtocolError(*errors.DUPLICATE_SUBSCRIPTION)
        if len(self._open) == self._subscriptions_max:
            raise RemoteProtocolError(*errors.TOO_MANY_SUBSCRIPTIONS)
        if sum(one.prefetch for one in self._open.values()) + subscription.prefetch > self._in_flight_max:
            raise RemoteProtocolError(*errors.TOO_MUCH_PREFETCH)
        self._last_number += 1
        self._open[self._last_number] = subscription
        return self._last_number

    def number_of(self, subscription_id: str) -> int | None:
        """Return the number of the open subscription with this id, if there is one."""
        return next((number for number, one in self._open.items() if one.id == subscription_id), None)

    def numbers_to(self, destination: str) -> tuple[int, ...]:
        """Return the numbers of all open subscriptions to a destination, oldest first."""
        return tuple(number for number, one in self._open.items() if one.destination == destination)

    def end(self, number: int) -> None:
        """Close an open subscription."""
        del self._open[number]
