"""One durable subscription while a client holds it: whether it may be, who holds it, and how far it has got.

Wire contract, "SUBSCRIBE". Reads what a subscription has in flight; asks no store, and writes nothing.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, field

from airy_trio.log.position import Position
from airy_trio.log.store import Holder
from airy_trio.stomp.requests import AckMode, Subscribe
from airy_trio.websocket.auth import User
from airy_trio.websocket.farewells import Farewell, with_token
from airy_trio.websocket.subscriptions import Subscription

NAME_CHARS_MAX: Final = 128

Key = tuple[str, str]
"""Owner and name."""


@define(eq=False)
class Waiting:
    """For who waits until the store has been asked: ``scope`` is cancelled then, and ``done`` is true."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    done: bool = False

    async def wait(self, pause: Callable[[float], Awaitable[object]]) -> None:
        """Return once it is done. ``pause``: see ``Conversation``."""
        with self.scope:
            await pause(math.inf)

    def finish(self) -> None:
        """It is done."""
        self.done = True
        self.scope.cancel()


@define(eq=False)
class Hold:
    """One durable subscription as it is held by a subscription of a client.

    ``claimed``: the store knows that it is. ``position``: what the store keeps, as far as is known. ``started``:
    where the subscription starts has been decided, so that there is something to acknowledge. ``released``: where the
    subscription had got when it ended. ``reclaim_until``: until when it is claimed again if another server takes it
    over (Trio's time).
    """

    subscription: Subscription
    holder: Holder
    claimed: Waiting = field(factory=Waiting)
    position: Position | None = None
    started: bool = False
    released: Position | None = None
    reclaim_until: float = -math.inf

    @property
    def key(self) -> Key:
        """Owner and name."""
        return self.holder.owner, self.holder.name


def refusal(request: Subscribe, user: User) -> Farewell | None:
    """Say why a SUBSCRIBE with ``durable`` cannot be; None where it can (wire contract, "SUBSCRIBE")."""
    name = request.durable or ""
    if user.name is None:
        token, prose = "403-durable-needs-auth", "A durable subscription needs a user, and this client has none."
    elif request.ack is AckMode.AUTO:
        token, prose = "400-durable-needs-ack", "A durable subscription needs the ack mode client or client-individual."
    elif not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        token, prose = (
            "400-bad-durable",
            f"The durable header is not 1 to {NAME_CHARS_MAX} printable characters.",
        )
    else:
        return None
    return with_token(token, prose, receipt_id=request.receipt)


def settled(subscription: Subscription, head: Position) -> Position:
    """The position up to which nothing has to be sent, or sent again: below the first that is not acknowledged.

    ``head``: of the log. Where all is acknowledged that there is, a subscription has got as far as that.
    """
    position, window = subscription.position, subscription.window
    oldest = None if window is None else window.oldest
    if oldest is None and subscription.owed:
        oldest = subscription.owed[0].offset
    if oldest is not None:
        return position.at(oldest - 1)
    if position.epoch == head.epoch and subscription.view.last <= position.offset:
        return max(position, head)
    return position
