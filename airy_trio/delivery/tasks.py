"""The tasks of one session, in a nursery that all sessions share: a task that fails disconnects its own client only.

A real nursery for each session would cost memory and connects per second.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import trio

from airy_trio.delivery.client import Client
from airy_trio.delivery.disconnects import reason_after

Arguments = TypeVarTuple("Arguments")


class Tasks:
    """Starts tasks for a client. The session that owns it calls ``stop`` before it ends."""

    __slots__ = ("_client", "_ended", "_scopes", "_start_soon")

    def __init__(self, connections: trio.Nursery, client: Client) -> None:
        self._start_soon = connections.start_soon
        self._client = client
        self._scopes: list[trio.CancelScope] = []  # few: smaller than a set
        self._ended: trio.Event | None = None  # set when a task ends, if `stop` waits for it

    def start_soon(self, function: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        """Start a task. If an exception leaves it, the client is disconnected."""
        scope = trio.CancelScope()
        self._scopes.append(scope)
        # Given explicitly, because Trio would make a new string for each task.
        name = getattr(function, "__qualname__", None)
        self._start_soon(self._run, scope, function, arguments, name=name)

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended. Idempotent."""
        for scope in self._scopes:
            scope.cancel()
        while self._scopes:
            self._ended = trio.Event()
            await self._ended.wait()

    async def _run(
        self,
        scope: trio.CancelScope,
        function: Callable[[*Arguments], Awaitable[object]],
        arguments: tuple[*Arguments],
    ) -> None:
        try:
            with scope:
                await function(*arguments)
        except Exception as fault:  # noqa: BLE001 - it would end the nursery of all sessions
            self._client.disconnect(reason_after(fault, self._client.session))
        finally:
            self._scopes.remove(scope)
            if self._ended is not None:
                self._ended.set()
