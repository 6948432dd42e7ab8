"""Connections that outlive a unit of work: opened in a thread, closed without going back to their pool, interrupted.

Closing has a budget for each thing that is closed, and takes place in a cancelled scope too. A unit of work that is
under way gets ``GRACE_S`` to end. After that its connection is interrupted from outside, because a server that does not
answer, or a lock, would keep our thread. The thread then gets an error, and closes the connection itself.
"""

import os
import socket
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final
from weakref import WeakSet

import psycopg
import sqlalchemy as sa
import trio

GRACE_S: Final = 1.0
"""For units of work that are under way when their connection is closed, and again after they were interrupted."""

Driver = psycopg.Connection[object] | sqlite3.Connection


class OpenConnections:
    """The driver's connections of one engine, from before the first statement on, so that a thread can be freed."""

    def __init__(self) -> None:
        self._drivers: WeakSet[Driver] = WeakSet()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, engine: sa.Engine) -> "OpenConnections":
        """Return the connections of an engine that ``postgres_engine`` or ``sqlite_engine`` made."""
        found: OpenConnections = engine.get_execution_options()["open_connections"]
        return found

    def add(self, driver: Driver) -> None:
        """Note a connection that was just opened."""
        with self._lock:
            self._drivers.add(driver)

    def interrupt(self) -> None:
        """Make the statement that is under way fail in each of them. A connection to Postgres is lost then.

        SQLite ends a wait for a lock by its own time-out only.
        """
        with self._lock:
            drivers = list(self._drivers)
        for driver in drivers:
            with suppress(sqlite3.ProgrammingError, psycopg.Error, OSError):  # closed meanwhile
                if isinstance(driver, sqlite3.Connection):
                    driver.interrupt()
                else:
                    with socket.socket(fileno=os.dup(driver.fileno())) as same:
                        same.shutdown(socket.SHUT_RDWR)


async def close_in_time(close: Callable[[], Awaitable[object]], open_connections: OpenConnections) -> None:
    """Close, also in a cancelled scope; interrupt the connections if that takes long. Returns in any case.

    ``close`` must be cancellable, and may run twice.
    """
    with trio.CancelScope(shield=True):
        with trio.move_on_after(GRACE_S) as patience:
            await close()
        if patience.cancelled_caught:
            open_connections.interrupt()
            with trio.move_on_after(GRACE_S):
                await close()


async def close_all(*closings: Callable[[], Awaitable[object]]) -> None:
    """Close several things at the same time. Each of them has its own budget, and closes in a cancelled scope too."""
    async with trio.open_nursery() as nursery:
        for close in closings:
            nursery.start_soon(close)


async def connected(engine: sa.Engine, prepare: Callable[[sa.Connection], object] | None = None) -> sa.Connection:
    """Open a connection in a thread. Cancellation takes effect at once: what opens later is closed again.

    ``prepare``: runs with the connection first, in the thread; if it fails the connection is closed.
    """
    opened: list[sa.Connection] = []
    given_up = False
    either = threading.Lock()  # the thread or the cancellation, whichever comes second, closes it

    def unit() -> None:
        connection = engine.connect()
        try:
            if prepare is not None:
                prepare(connection)
        except BaseException:
            cut(connection)
            raise
        with either:
            opened.append(connection)
            unwanted = given_up
        if unwanted:
            cut(connection)

    try:
        await trio.to_thread.run_sync(unit, abandon_on_cancel=True)
    except trio.Cancelled:
        with either:
            given_up = True
            unwanted = list(opened)
        for connection in unwanted:
            cut(connection)
        raise
    return opened[0]


def cut(connection: sa.Connection) -> None:
    """Close a connection itself: in its pool it might be in the middle of something, or have what belongs to it."""
    connection.invalidate()
    connection.close()
