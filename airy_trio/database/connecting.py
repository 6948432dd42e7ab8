"""Connections that outlive a unit of work, opened beside Trio and closed without going back to their pool."""

import threading
from collections.abc import Callable

import sqlalchemy as sa
import trio


async def connected(engine: sa.Engine, prepare: Callable[[sa.Connection], object] | None = None) -> sa.Connection:
    """Open a connection in a thread. Cancellation is heard at once: what is opened after it is closed again.

    ``prepare``: what is done with it first, in the thread; where that fails it is closed.
    """
    opened: list[sa.Connection] = []
    given_up = False
    either = threading.Lock()  # whoever comes second, the thread or the cancellation, closes it

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
