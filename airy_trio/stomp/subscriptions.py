"""The open subscriptions of a connection, by number, id and destination; what is sent to them is not known here."""

from attrs import frozen

from airy_trio.stomp import faults
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.requests import AckMode


@frozen(kw_only=True)
class Subscription:
    """What the frames of a subscription are made from. ``prefetch``: what may be in flight; 0 with ``AckMode.AUTO``."""

    id: str | None
    destination: str
    ack: AckMode
    prefetch: int = 0


class Subscriptions:
    """Subscriptions numbered from 1 in the order of their opening; a number is never used twice.

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
        self._open: dict[int, Subscription] = {}
        self._ended: dict[int, Subscription] | None = None  # few have any, and a dict takes memory in all
        self._numbers: dict[str, int] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, subscription: Subscription) -> int:
        """Add a subscription and give its number. Raises ``RemoteProtocolError`` for a repeated id or one too many.

        That is also one whose ``prefetch`` would let more be in flight than ``in_flight_max``.
        """
        if subscription.id in self._numbers:
            raise RemoteProtocolError(*faults.DUPLICATE_SUBSCRIPTION)
        if len(self._open) == self._subscriptions_max:
            raise RemoteProtocolError(*faults.TOO_MANY_SUBSCRIPTIONS)
        if self._prefetch + subscription.prefetch > self._in_flight_max:
            raise RemoteProtocolError(*faults.TOO_MUCH_PREFETCH)
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

    def find(self, number: int) -> Subscription | None:
        """Look up a subscription that is open, or ended and not forgotten."""
        return self._open.get(number) or (None if self._ended is None else self._ended.get(number))
