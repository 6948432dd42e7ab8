"""The fence of a Postgres event store: a writer that hangs in the middle of an append does not hold up the next one.

A session's time-outs end a writer that is frozen between two statements. They do not run while the server reads what
belongs to a statement (the rows of a COPY), nor where the network swallows it: such a writer would keep the state's row
locked for hours. So each append first takes an advisory lock, and who waits for it in vain ends the session that holds
it: whoever appends holds the lease, so the other one has lost it. Refuses to know what is appended.
"""

from typing import Final

import sqlalchemy as sa

from airy_trio.database import LOCK_CLASS, Names
from airy_trio.log.tables import STATE

FENCE_CLASS: Final = LOCK_CLASS + 2
PATIENCE_FIRST_S: Final = 0.15
PATIENCE_MAX_S: Final = 60.0
LOCK_NOT_AVAILABLE: Final = "55P03"

_OBJECT: Final = "cast(cast(to_regclass(:name) as oid) as int)"
_TRY: Final = sa.text(
    f"select pg_try_advisory_xact_lock(:fence_class, {_OBJECT}), set_config('synchronous_commit', 'on', true)"
)
_LIMIT: Final = sa.text("select set_config('lock_timeout', :milliseconds, true)")
_WAIT: Final = sa.text(f"select pg_advisory_xact_lock(:fence_class, {_OBJECT})")
_NO_LIMIT: Final = sa.text("set local lock_timeout to default")
_CUT_OFF: Final = sa.text(
    "select count(pg_terminate_backend(pid)) from pg_locks "
    "where locktype = 'advisory' and classid = :fence_class and objid = to_regclass(:name) and granted "
    "and database = (select oid from pg_database where datname = current_database())"
)


class Fence:
    """The appends of one node. ``patience_s`` doubles with each cut up to an append that succeeds.

    So two nodes whose appends are slow, and not frozen, do not cut each other off for ever.
    """

    def __init__(self, names: Names) -> None:
        self._arguments = {"fence_class": FENCE_CLASS, "name": names.quoted(STATE)}
        self.patience_s = PATIENCE_FIRST_S

    def enter(self, connection: sa.Connection) -> None:
        """Keep others out to the end of this transaction, whose commit is synchronous from now on.

        SQLSTATE ``LOCK_NOT_AVAILABLE`` where another one stays inside.
        """
        if connection.execute(_TRY, self._arguments).one()[0]:
            return
        connection.execute(_LIMIT, {"milliseconds": str(int(self.patience_s * 1000))})
        connection.execute(_WAIT, self._arguments)
        connection.execute(_NO_LIMIT)

    def cut_off(self, connection: sa.Connection) -> int:
        """End the session that is inside, and give how many there were."""
        self.patience_s = min(2 * self.patience_s, PATIENCE_MAX_S)
        count: int = connection.execute(_CUT_OFF, self._arguments).scalar_one()
        return count

    def passed(self) -> None:
        """Note that an append has succeeded."""
        self.patience_s = PATIENCE_FIRST_S
