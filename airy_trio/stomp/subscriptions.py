"""The open subscriptions of a connection, by number, id and destination; what is sent to them is not known here.

The open transactions of a connection, and the acknowledgements that wait in them for COMMIT.
"""

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
    """Acknowledgements in the client's order, each in 18 octets.

    A client may let thousands wait on each of its connections and never commit them. So only the numbers are kept: the
    subscription's, and the epoch and offset of which the server makes its message ids. A message id of another form
    belongs to no message: of such an acknowledgement only the fact is kept that there was one.
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
        """Add one more."""
        found = _MESSAGE_ID.fullmatch(ack.message_id)
        number = _ANY_SUBSCRIPTION if ack.number is None else ack.number
        if found is None or (ack.number is not None and number >= _ANY_SUBSCRIPTION):
            self._packed += _UNKNOWN
        else:
            offset = int(found[2])
            self._packed += _PACKED.pack(number, found[1].encode(), offset if ack.accepted else ~offset)


class Transactions:
    """Transactions by the client's own names. All limits and faults raise ``RemoteProtocolError``.

    ``acks_max`` bounds the acknowledgements of all open transactions together.
    """

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
        """How many acknowledgements wait in open transactions."""
        return self._acks_held

    def begin(self, name: str) -> None:
        """Open a transaction."""
        if name in self._open:
            raise RemoteProtocolError(*errors.TRANSACTION_BEGUN_TWICE)
        if len(self._open) == self._transactions_max:
            raise RemoteProtocolError(*errors.TOO_MANY_TRANSACTIONS)
        self._open[name] = WaitingAcks()

    def add(self, name: str, ack: Ack) -> None:
        """Let an acknowledgement wait for the end of its transaction."""
        acks = self._acks_of(name)
        if self._acks_held == self._acks_max:
            raise RemoteProtocolError(*errors.TOO_MANY_TRANSACTION_ACKS)
        acks.append(ack)
        self._acks_held += 1

    def end(self, name: str) -> WaitingAcks:
        """Close a transaction and give what waited in it, in its order: COMMIT uses it, ABORT does not."""
        acks = self._acks_of(name)
        del self._open[name]
        self._acks_held -= len(acks)
        return acks

    def clear(self) -> None:
        """Drop all open transactions, as the end of the connection does (STOMP 1.2, "BEGIN")."""
        self._open.clear()
        self._acks_held = 0

    def _acks_of(self, name: str) -> WaitingAcks:
        try:
            return self._open[name]
        except KeyError:
            raise RemoteProtocolError(*errors.UNKNOWN_TRANSACTION) from None


@frozen(kw_only=True)
class OpenSubscription:
    """What the frames of a subscription are made from. ``prefetch``: what may be in flight; 0 with ``AckMode.AUTO``."""

    id: str | None
    destination: str
    ack: AckMode
    prefetch: int = 0


class OpenSubscriptions:
    """OpenSubscriptions numbered from 1 in the order of their opening; a number is never used twice.

    One that was ended can still be looked up until ``forget_ended``: its SUBSCRIBE may have come in the same piece
    of input as its UNSUBSCRIBE, and is then answered after both were read.
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
        self._prefetch = 0  # of all that are open
        self._subscriptions_max = subscriptions_max
        self._open: dict[int, OpenSubscription] = {}
        self._ended: dict[int, OpenSubscription] | None = None  # few have any, and a dict takes memory in all
        self._numbers: dict[str, int] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, subscription: OpenSubscription) -> int:
        """Add a subscription and give its number. Raises ``RemoteProtocolError`` for a repeated id or one too many.

        That is also one whose ``prefetch`` would let more be in flight than ``in_flight_max``.
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
        """Give the number of the open subscription with this id, if there is one."""
        return self._numbers.get(subscription_id)

    def numbers_to(self, destination: str) -> tuple[int, ...]:
        """Give the numbers of all open subscriptions to a destination, the oldest first."""
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
        """Drop what was kept of ended subscriptions."""
        self._ended = None

    def find(self, number: int) -> OpenSubscription | None:
        """Look up a subscription that is open, or ended and not forgotten."""
        return self._open.get(number) or (None if self._ended is None else self._ended.get(number))
