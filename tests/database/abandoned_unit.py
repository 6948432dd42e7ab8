"""A unit of work that is abandoned while it runs. It continues in its thread until it is released."""

import threading
from collections.abc import Awaitable, Callable

import sqlalchemy as sa
import trio
from attrs import define, field

LIMIT_S = 30.0


@define
class Held:
    """A unit of work that runs until it is released. ``closed`` is set once its connection is closed."""

    closed: threading.Event = field(factory=threading.Event)
    running: threading.Event = field(factory=threading.Event)
    _released: threading.Event = field(factory=threading.Event)

    async def abandon(self, run: Callable[[Callable[[sa.Connection], None]], Awaitable[None]]) -> None:
        """Start the unit, and cancel the call once the unit is running."""
        self.running.clear()
        with trio.fail_after(10), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, self._work)
                await trio.to_thread.run_sync(self.running.wait)
                scope.cancel()

    async def run(self, run: Callable[[Callable[[sa.Connection], None]], Awaitable[None]]) -> None:
        """Run the unit to its end."""
        await run(self._work)

    def release(self) -> None:
        """Let the unit end."""
        self._released.set()

    def _work(self, connection: sa.Connection) -> None:
        sa.event.listen(connection.engine.pool, "close", lambda _connection, _record: self.closed.set())
        self.running.set()
        self._released.wait(LIMIT_S)
