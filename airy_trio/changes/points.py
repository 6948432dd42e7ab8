"""Resume points: what a feed remembers of how far it has read, as text that nobody else reads."""

import json
import re
from typing import Final, Self

import sqlalchemy as sa
from attrs import asdict, frozen

from airy_trio.changes.feed import ResumePointLost
from airy_trio.database import POSTGRES

SNAPSHOT: Final = sa.text("select cast(pg_current_snapshot() as text)")
_SNAPSHOT_FORM = re.compile(r"[0-9]+:[0-9]+:([0-9]+(,[0-9]+)*)?")
_IDENTITY = sa.text(
    "select cast(system_identifier as text), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) "
    "from pg_control_system()"
)


@frozen
class SqlitePoint:
    """Everything up to row ``seq`` of the change log has been read; ``token`` proves that it is still the same row.

    A file that was replaced by an older copy has no row of that number, or another one.
    """

    seq: int = 0
    token: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote. Raises ``ResumePointLost`` where another kind of database wrote it."""
        match _parsed(text):
            case [int(seq), str(token)]:
                return cls(seq, token)
            case _:
                raise _foreign()

    def __str__(self) -> str:
        return json.dumps([self.seq, self.token], separators=(",", ":"))


@frozen(kw_only=True)
class PostgresPoint:
    """Everything that ``snapshot`` sees has been read, and of what ``target`` sees beyond it all up to ``seq``.

    ``system`` and ``timeline`` say in which history of which cluster the transaction numbers mean something.
    """

    system: str
    timeline: str
    snapshot: str
    target: str = ""
    seq: int = 0

    @classmethod
    def now(cls, connection: sa.Connection) -> Self:
        """The point after everything that the connection's snapshot sees."""
        system, timeline = connection.execute(_IDENTITY).one()
        return cls(system=system, timeline=timeline, snapshot=connection.execute(SNAPSHOT).scalar_one())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote. Raises ``ResumePointLost`` where another kind of database wrote it."""
        match _parsed(text):
            case {
                "system": str(system),
                "timeline": str(timeline),
                "snapshot": str(snapshot),
                "target": str(target),
                "seq": int(seq),
            } if _SNAPSHOT_FORM.fullmatch(snapshot):
                return cls(system=system, timeline=timeline, snapshot=snapshot, target=target, seq=seq)
            case _:
                raise _foreign()

    def __str__(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @property
    def horizon(self) -> int:
        """Below this transaction number everything has been read."""
        return int(self.snapshot.split(":")[0])

    @property
    def next_transaction(self) -> int:
        """From this transaction number on nothing was visible (the snapshot's ``xmax``)."""
        return int(self.snapshot.split(":")[1])

    @property
    def in_progress(self) -> list[str]:
        """The transactions below ``next_transaction`` that were still open."""
        return [txid for txid in self.snapshot.split(":")[2].split(",") if txid]


def first(connection: sa.Connection) -> str:
    """The resume point of a change log that was made just now."""
    return str(PostgresPoint.now(connection) if connection.dialect.name == POSTGRES else SqlitePoint())


def _parsed(text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except ValueError:
        return None
    return parsed


def _foreign() -> ResumePointLost:
    return ResumePointLost("what was recorded is of another kind of database")
