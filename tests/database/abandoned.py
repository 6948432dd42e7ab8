"""A unit of work that is abandoned while it is under way, and goes on in its thread until it is let go."""

import threading
from collections.abc import Awaitable, Callable

import sqlalchemy as sa
import trio
from attrs import define, field

LIMIT_S = 30.0


@define
class Held:
    """``closed`` is set once the connection that the unit had is closed."""

    closed: threading.Event = field(factory=threading.Event)
    under_way: threading.Event = field(factory=threading.Event)
    _let_go: threading.Event = field(factory=threading.Event)

    async def abandon(self, run: Callable[[Callable[[sa.Connection], None]], Awaitable[None]]) -> None:
        """Have it run, and cancel that once it is under way."""
        self.under_way.clear()
        with trio.fail_after(10), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, self._work)
                await trio.to_thread.run_sync(self.under_way.wait)
                scope.cancel()

    async def run(self, run: Callable[[Callable[[sa.Connection], None]], Awaitable[None]]) -> None:
        """Have it run to its end."""
        await run(self._work)

    def let_go(self) -> None:
        """Let it come to its end."""
        self._let_go.set()

    def _work(self, connection: sa.Connection) -> None:
        sa.event.listen(connection.engine.pool, "close", lambda _connection, _record: self.closed.set())
        self.under_way.set()
        self._let_go.wait(LIMIT_S)
