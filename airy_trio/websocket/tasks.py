"""The tasks of one session in a nursery that all sessions share: what fails in one dismisses its client, no other.

trio-websocket takes this for the nursery in which its reader runs. A nursery of its own for each session would cost
memory and connects per second. Opens no nursery.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import trio

from airy_trio.websocket.faults import farewell_after
from airy_trio.websocket.subscriptions import Client

Arguments = TypeVarTuple("Arguments")


class Tasks:
    """Starts tasks for a client. The session that made it calls ``stop`` before it ends."""

    __slots__ = (
        "_client",
        "_idle",
        "_scopes",
        "_start_soon",
    )

    def __init__(self, connections: trio.Nursery, client: Client) -> None:
        self._start_soon = connections.start_soon
        self._client = client
        self._scopes: list[trio.CancelScope] = []  # two or three: smaller than a set
        self._idle: trio.Event | None = None  # where somebody waits for it

    def start_soon(self, function: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        """Start a task. An exception that leaves it dismisses the client."""
        scope = trio.CancelScope()
        self._scopes.append(scope)
        name = getattr(function, "__qualname__", None)  # made once, where Trio would make one for each task
        self._start_soon(self._run, scope, function, arguments, name=name)

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended. Idempotent."""
        for scope in self._scopes:
            scope.cancel()
        while self._scopes:
            if self._idle is None or self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()

    async def _run(
        self,
        scope: trio.CancelScope,
        function: Callable[[*Arguments], Awaitable[object]],
        arguments: tuple[*Arguments],
    ) -> None:
        try:
            with scope:
                await function(*arguments)
        except Exception as fault:  # noqa: BLE001 - beyond this the nursery of all sessions would end
            self._client.dismiss(farewell_after(fault, self._client.session))
        finally:
            self._scopes.remove(scope)
            if not self._scopes and self._idle is not None:
                self._idle.set()
