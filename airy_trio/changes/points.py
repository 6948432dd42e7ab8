"""Resume points: what a feed remembers of how far it has read, as text that nobody else reads."""

import json
import re
from json.encoder import encode_basestring_ascii
from typing import Final, Self

import sqlalchemy as sa
from attrs import evolve, frozen

from airy_trio.changes.feed import ResumePointLost
from airy_trio.database import POSTGRES

_QUOTED: Final = encode_basestring_ascii
_FORM: Final = '{{"system":{},"timeline":{},"snapshot":{},"place":{},"target":{},"seq":{}}}'
"""Of a point in JSON. It is written after each commit, and then all that is seldom run costs ten times as much."""
_SNAPSHOT_FORM = re.compile(r"[0-9]+:[0-9]+:([0-9]+(,[0-9]+)*)?")
_CLUSTER = sa.text(
    "select cast(system_identifier as text), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), "
    "(select oid from pg_database where datname = current_database()) from pg_control_system()"
)
_MOMENT = sa.text(
    "select cast(pg_current_snapshot() as text), coalesce(cast(cast(to_regclass(:log) as oid) as text), '')"
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


@frozen
class Cluster:
    """Which history of which cluster a connection is to, and which database there: none of it can change under it."""

    system: str
    timeline: str
    database: int

    @classmethod
    def of(cls, connection: sa.Connection) -> Self:
        """Ask for it. The role needs ``pg_control_system``."""
        return cls(*connection.execute(_CLUSTER).one())


@frozen(kw_only=True)
class PostgresPoint:
    """Everything that ``snapshot`` sees has been read, and of what ``target`` sees beyond it all up to ``seq``.

    ``system`` and ``timeline`` say in which history of which cluster the transaction numbers mean something. ``place``
    is the database and the change log by their numbers in it: a dump that is restored gets others. Before the first
    batch it is "", which stands for any.
    """

    system: str
    timeline: str
    snapshot: str
    place: str = ""
    target: str = ""
    seq: int = 0

    @classmethod
    def now(cls, connection: sa.Connection, log: str, cluster: Cluster | None = None) -> Self:
        """The point after everything that the connection's snapshot sees. ``log``: the change log's quoted name."""
        known = cluster or Cluster.of(connection)
        return cls.at(known, *connection.execute(_MOMENT, {"log": log}).one())

    @classmethod
    def at(cls, cluster: Cluster, snapshot: str, log: str) -> Self:
        """The point after everything that a snapshot sees; ``log`` is the number of the change log."""
        place = f"{cluster.database}.{log}"
        return cls(system=cluster.system, timeline=cluster.timeline, place=place, snapshot=snapshot)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote. Raises ``ResumePointLost`` where another kind of database wrote it."""
        match _parsed(text):
            case {
                "system": str(system),
                "timeline": str(timeline),
                "snapshot": str(snapshot),
                "place": str(place),
                "target": str(target),
                "seq": int(seq),
            } if _SNAPSHOT_FORM.fullmatch(snapshot):
                return cls(system=system, timeline=timeline, snapshot=snapshot, place=place, target=target, seq=seq)
            case _:
                raise _foreign()

    def __str__(self) -> str:
        texts = map(_QUOTED, (self.system, self.timeline, self.snapshot, self.place, self.target))
        return _FORM.format(*texts, self.seq)

    @property
    def next_transaction(self) -> int:
        """From this transaction number on nothing was visible (the snapshot's ``xmax``)."""
        return int(self.snapshot.split(":")[1])

    @property
    def in_progress(self) -> list[str]:
        """The transactions below ``next_transaction`` that were still open."""
        return [txid for txid in self.snapshot.split(":")[2].split(",") if txid]

    def has_read(self, other: Self) -> bool:
        """Whether everything that the other one's snapshot sees has been read, in the same history."""
        unread = {txid for txid in self.in_progress if int(txid) < other.next_transaction}
        return self.next_transaction >= other.next_transaction and unread <= set(other.in_progress)


def first(connection: sa.Connection, log: str) -> str:
    """The resume point of a change log that was made just now. ``log``: its quoted name.

    It is of no place: whoever runs a preview of the migration by hand makes another change log than the previewed one.
    """
    if connection.dialect.name != POSTGRES:
        return str(SqlitePoint())
    return str(evolve(PostgresPoint.now(connection, log), place=""))


def _parsed(text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except ValueError:
        return None
    return parsed


def _foreign() -> ResumePointLost:
    return ResumePointLost("what was recorded is of another kind of database")
