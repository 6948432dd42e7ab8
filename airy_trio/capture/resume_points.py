"""Resume points: how far a feed has read and in which history, as text that only the feed reads.

Every point names the change log that it is of (``source``) and may carry a ``mark``. The database keeps the marks of
the points that the event log may hold (``History``), so a database or an event log that has been put back to an older
state shows: their marks do not match. Points are JSON objects. A key that is missing, as in points of older versions,
means "any".
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from json.encoder import encode_basestring_ascii
from typing import Any, Final, Self

import sqlalchemy as sa
from attrs import evolve, frozen

from airy_trio.capture.feed import ResumePointLost, ResumePointTooNew
from airy_trio.database import POSTGRES

FORMAT: Final = 1
"""Of the points that are written here. A point with a higher number is of a newer version, which alone can read it."""

_QUOTED: Final = encode_basestring_ascii
_POSTGRES_FORM: Final = (
    f'{{{{"format":{FORMAT},"system":{{}},"timeline":{{}},"snapshot":{{}},"place":{{}},"target":{{}},"seq":{{}},'
    '"source":{},"mark":{}}}'
)
"""A point is written after each commit; ``json.dumps`` would take ten times as long while the caches are cold."""
_SQLITE_FORM: Final = f'{{{{"format":{FORMAT},"seq":{{}},"token":{{}},"source":{{}},"mark":{{}}}}}}'
_POSTGRES_OPTIONAL: Final[Mapping[str, Any]] = {"place": "", "target": "", "seq": 0, "source": "", "mark": ""}
_SQLITE_OPTIONAL: Final[Mapping[str, Any]] = {"source": "", "mark": ""}
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
    source: str = ""
    mark: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote, or the list that an older version wrote.

        Raises ``ResumePointLost`` if another kind of database wrote it, and ``ResumePointTooNew``.
        """
        match parsed(text):
            case [int(seq), str(token)]:
                return cls(seq, token)
            case {"seq": int(seq), "token": str(token), **more}:
                return cls(seq, token, **_optional(more, _SQLITE_OPTIONAL))
            case _:
                raise _another_kind()

    def __str__(self) -> str:
        return _SQLITE_FORM.format(self.seq, _QUOTED(self.token), _QUOTED(self.source), _QUOTED(self.mark))


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
    batch it is "", which stands for any, as it does for ``source`` and ``mark``.
    """

    system: str
    timeline: str
    snapshot: str
    place: str = ""
    target: str = ""
    seq: int = 0
    source: str = ""
    mark: str = ""

    @classmethod
    def now(cls, connection: sa.Connection, log: str, cluster: Cluster | None = None) -> Self:
        """The point after everything that the connection's snapshot sees. ``log``: the change log's quoted name."""
        known = cluster or Cluster.of(connection)
        return cls.at(known, *connection.execute(_MOMENT, {"log": log}).one())

    @classmethod
    def at(cls, cluster: Cluster, snapshot: str, log: str, *, source: str = "", mark: str = "") -> Self:
        """The point after everything that a snapshot sees; ``log`` is the number of the change log."""
        place = f"{cluster.database}.{log}"
        system, timeline = cluster.system, cluster.timeline
        return cls(system=system, timeline=timeline, place=place, snapshot=snapshot, source=source, mark=mark)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote, in this version or an older one.

        Raises ``ResumePointLost`` if another kind of database wrote it, and ``ResumePointTooNew``.
        """
        match parsed(text):
            case {"system": str(system), "timeline": str(timeline), "snapshot": str(snapshot), **more} if (
                _SNAPSHOT_FORM.fullmatch(snapshot)
            ):
                optional = _optional(more, _POSTGRES_OPTIONAL)
                return cls(system=system, timeline=timeline, snapshot=snapshot, **optional)
            case _:
                raise _another_kind()

    def __str__(self) -> str:
        texts = map(_QUOTED, (self.system, self.timeline, self.snapshot, self.place, self.target))
        return _POSTGRES_FORM.format(*texts, self.seq, _QUOTED(self.source), _QUOTED(self.mark))

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

    def require_history_of(self, now: Self) -> None:
        """Raise ``ResumePointLost`` unless this point lies in the past of ``now``."""
        if (self.system, self.timeline) != (now.system, now.timeline):
            message = "the database is another cluster, or a restored one, than the one that was recorded"
            raise ResumePointLost(message)
        if self.place and self.place != now.place:
            message = "the change log is another one than was recorded, as after a dump was restored"
            raise ResumePointLost(message)
        if self.next_transaction > now.next_transaction:
            message = "the database has gone back behind what was recorded"
            raise ResumePointLost(message)


@frozen(kw_only=True)
class History:
    """What ``change_state`` keeps of the history of its change log.

    ``source``: the identity of the change log. ``origin``: the resume point for an event log that has none; every
    change after it is still there. ``mark``: of the newest resume point that was sealed. ``replaced_mark``: of those
    that the event log may hold instead, with spaces between; the same as ``mark`` once the newest is known to be
    recorded.
    """

    source: str
    origin: str
    mark: str
    replaced_mark: str

    def require(self, point: PostgresPoint | SqlitePoint) -> None:
        """Raise ``ResumePointLost`` if a recorded point is not of this history.

        A point before the origin is of an older copy of an event log: the changes after it have been trimmed.
        """
        if point.source and point.source != self.source:
            message = "the changes are those of another database than was recorded"
            raise ResumePointLost(message)
        if isinstance(point, PostgresPoint):
            origin = PostgresPoint.parse(self.origin)
            trimmed = origin.system == point.system and not point.has_read(origin)
        else:
            trimmed = point.seq < SqlitePoint.parse(self.origin).seq
        if trimmed:
            message = "what followed the recorded resume point has been trimmed from the change log"
            raise ResumePointLost(message)
        if point.mark and point.mark not in (self.mark, *self.replaced_mark.split()):
            message = "the database or the event log has gone back to an older state"
            raise ResumePointLost(message)


def first(connection: sa.Connection, log: str) -> str:
    """The resume point of a change log that was made just now. ``log``: its quoted name.

    It is of no place: running a preview of the migration by hand makes another change log than the previewed one.
    """
    if connection.dialect.name != POSTGRES:
        return str(SqlitePoint())
    return str(evolve(PostgresPoint.now(connection, log), place=""))


def source_of(text: str) -> str:
    """The identity of the change log that a point of either kind is of; "" if it names none.

    Raises ``ResumePointTooNew``.
    """
    match parsed(text):
        case {"source": str(source)}:
            return source
        case _:
            return ""


def is_foreign(text: str, source: str) -> bool:
    """Whether a point is of another change log than ``source``, or of another way of capture.

    False if it does not say, as a point of an older version. Raises ``ResumePointTooNew``.
    """
    match parsed(text):
        case {"identity": _}:  # watermarks, which have no source in older versions
            return True
        case _:
            return source_of(text) not in ("", source)


def identified(text: str, source: str) -> str:
    """A point of either kind with the identity of its change log, if it names none; any other text as it is.

    Raises ``ResumePointTooNew``.
    """
    if source_of(text):
        return text
    for kind in (PostgresPoint, SqlitePoint):
        with suppress(ResumePointLost):
            return str(evolve(kind.parse(text), source=source))
    return text


def parsed(text: str) -> object:
    """The JSON of a point of any kind; None if it is none. Raises ``ResumePointTooNew``."""
    try:
        found: object = json.loads(text)
    except ValueError:
        return None
    match found:
        case {"format": int(format_)} if format_ > FORMAT:
            raise ResumePointTooNew(format_, FORMAT)
        case _:
            return found


def _optional(found: Mapping[Any, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The optional values of a point, each of its default's type. Raises ``ResumePointLost``."""
    values = {name: found.get(name, default) for name, default in defaults.items()}
    if not all(isinstance(values[name], type(default)) for name, default in defaults.items()):
        raise _another_kind()
    return values


def _another_kind() -> ResumePointLost:
    return ResumePointLost("what was recorded is of another kind of database")
