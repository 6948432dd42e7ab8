"""The answer to CONNECT: an accepted client is live and watched from then on, a refused one waits and gets an ERROR."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from airy_trio.stomp.requests import Connect
from airy_trio.websocket.auth import Authenticator, Refusal, RefusalKind, User
from airy_trio.websocket.early_ends import EarlyEnds
from airy_trio.websocket.farewells import KEYS_AWAY, TOKEN_EXPIRED, UNAUTHORIZED, Farewell
from airy_trio.websocket.framing import text_message
from airy_trio.websocket.heartbeats import Pulse, Wheel
from airy_trio.websocket.subscriptions import Client, State

logger = structlog.get_logger(__name__)

Pause = Callable[[float], Awaitable[object]]
"""How some seconds are waited for (``Conversation.pause``)."""

_REFUSED: Final = {
    RefusalKind.UNAUTHORIZED: UNAUTHORIZED,
    RefusalKind.EXPIRED: TOKEN_EXPIRED,
    RefusalKind.UNAVAILABLE: KEYS_AWAY,
}


async def admit(  # noqa: PLR0913 - the client, its credentials, and the services of the process
    client: Client,
    request: Connect,
    token: str | None,
    *,
    authenticator: Authenticator,
    early_ends: EarlyEnds,
    wheel: Wheel,
    pause: Pause,
) -> Farewell | None:
    """Send CONNECTED and begin to watch the client's heart-beats; or return the farewell that refuses it.

    ``token``: the one in the upgrade request, if it has one.
    """
    user = await authenticator.authenticate(request, token)
    if isinstance(user, Refusal):
        return await _refuse(client, user, authenticator, early_ends, pause)
    client.user = user
    await client.wire.write(text_message(client.connection.connected()))
    if not authenticator.accepts(user):
        return UNAUTHORIZED  # they were taken back meanwhile, and only clients that are connected were ended
    client.connected = True
    logger.info("connection opened", session=client.session, address=client.address, user=user.name)
    if client.state is State.CONNECTING:
        client.state = State.LIVE
        client.scope.deadline = math.inf
        client.wire.limit(None)
        wheel.watch(Pulse(client, client.wire, request.heartbeat, _expires_at(user)))
    return None


async def _refuse(
    client: Client, refusal: Refusal, authenticator: Authenticator, early_ends: EarlyEnds, pause: Pause
) -> Farewell:
    reason = refusal.reason
    early_ends.log("credentials refused", reason, session=client.session, address=client.address, reason=reason)
    if refusal.kind is not RefusalKind.UNAVAILABLE:  # which is no doing of the client's
        client.scope.deadline = math.inf  # it came in time
        await pause(authenticator.delay_s(client.peer))
    return _REFUSED[refusal.kind]


def _expires_at(user: User) -> float:
    """When the user's credentials stop to count, in Trio's time."""
    return math.inf if user.expires_at is None else trio.current_time() + user.expires_at - time.time()
