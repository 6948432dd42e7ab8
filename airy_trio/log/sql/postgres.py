"""The bell of a Postgres event store: who appends rings it, who waits need not ask the database again and again.

NOTIFY by the one writer of the log costs nothing; the application's transactions never
notify. A bell only saves time: whoever waits looks by itself as well, often until the bell was heard once (behind a
pooler it never is), then seldom.
"""

from typing import Any, Final

import psycopg
import sqlalchemy as sa
import structlog
import trio
from sqlalchemy.exc import SQLAlchemyError

from airy_trio.database import connected, cut, quote_identifier
from airy_trio.log.store import StoreUnavailable

logger = structlog.get_logger(__name__)

POLL_S: Final = 0.05
POLL_WITH_BELL_S: Final = 1.0
_RING: Final = sa.text("select pg_notify(:channel, '')")


class Bell:
    """One connection that listens, opened by the first who waits. ``name``: of the log, in its database.

    ``channel``: where whoever appends notifies, with the position of the new head. ``heard``: the last such position
    that this connection has been told: what is appended after it, it will be told as well.
    """

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine = engine
        self.channel = f"{name}_log"
        self.heard = ""
        self._connection: sa.Connection | None = None
        self._busy = False
        self._rings = False
        self._stale = False

    def ring(self, connection: sa.Connection) -> None:
        """Ring when the transaction commits, without saying where the head is then."""
        connection.execute(_RING, {"channel": self.channel})

    async def wait(self) -> str:
        """Return when it rang, with the head that it told; or empty, when it is time to look.

        Raises ``StoreUnavailable`` where the connection stood and was lost: behind the next one may be a database that
        was promoted without the last commits.
        """
        if self._busy:  # a connection's socket can be waited for by one task
            await trio.sleep(POLL_S)
            return ""
        self._busy = True
        try:
            if self._stale:
                self._stale = False
                await trio.to_thread.run_sync(self._drop)
                return ""
            return await self._listen_for_a_while()
        finally:
            self._busy = False

    def outlived(self) -> None:
        """Say that the database was away and is back, which whoever follows it was told: hang up without telling again.

        A connection of before would be found to be lost at the next wait, and the one outage told as two.
        """
        self._stale = True

    async def aclose(self) -> None:
        """Close the connection, also in a cancelled scope. Idempotent."""
        self._drop()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _listen_for_a_while(self) -> str:
        try:
            if self._connection is None:
                self._connection = await connected(self._engine, self._begin)
            with trio.move_on_after(POLL_WITH_BELL_S if self._rings else POLL_S):
                return await self._listen(self._connection)
        except (SQLAlchemyError, psycopg.Error) as error:
            lost = type(error).__name__
        else:
            self.heard = ""  # the caller looks by itself
            return ""
        logger.debug("the bell of the event log is away", reason=lost)
        stood = self._connection is not None
        await trio.to_thread.run_sync(self._drop)
        if stood:
            message = f"the connection that listens was lost: {lost}"
            raise StoreUnavailable(message)
        await trio.sleep(POLL_S)  # the next look at the store tells whether it is away
        return ""

    async def _listen(self, connection: sa.Connection) -> str:
        driver: Any = connection.connection.driver_connection
        rung = list(driver.notifies(timeout=0))  # asks without waiting
        if not rung:
            await trio.lowlevel.wait_readable(driver.fileno())
            rung = list(driver.notifies(timeout=0))
        if rung:
            self._rings, self.heard = True, rung[-1].payload
        return self.heard if rung else ""

    def _begin(self, connection: sa.Connection) -> None:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(f"listen {quote_identifier(self.channel)}")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._rings, self.heard = False, ""
        if connection is not None:
            cut(connection)  # who got it from the pool would listen too
