"""Resume points: how far a feed has read, and in which history of the database, as text for the event store.

A resume point is a JSON object that only the feed interprets. It contains

- the position: on SQLite the number of a row of the change log, on Postgres a snapshot (see ``PostgresPoint``);
- proof that the position means something in this database. Transaction numbers and row numbers are valid in one
  history only. After a dump is restored, a file is replaced by a copy, or a standby is promoted, an old position can
  look valid and lie in the future, and changes would be skipped silently;
- ``source``, the random identity of the change log, and a ``mark`` (see ``change_log``, "Sealing"). The database keeps
  the marks of the points that the event log may hold (``History``), so that a database or an event log that was
  restored to an older state is detected.

A key that is missing, as in points of older versions, matches any value.
"""

import json
from contextlib import suppress
from typing import Any, Final, Self

import sqlalchemy as sa
from attrs import asdict, evolve, field, fields_dict, frozen
from attrs.validators import matches_re

from airy_trio.capture.feed import ResumePointLost, ResumePointTooNew
from airy_trio.database import POSTGRES

FORMAT: Final = 1
"""Format of the points written here. Only a newer version can read a point with a higher number."""

MOMENT: Final = (
    "cast(pg_current_snapshot() as text) as snapshot, (select oid from pg_database where datname = current_database()) "
    "|| '.' || coalesce(cast(cast(to_regclass(:log) as oid) as text), '') as place"
)
"""Columns: the snapshot and the place of a ``PostgresPoint``. ``:log`` is the quoted name of the change log."""
_NOW = sa.text(
    "select cast(system_identifier as text) as system, "  # noqa: S608 - no text of others
    f"substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline, {MOMENT} from pg_control_system()"
)


@frozen
class _Point:
    """A point as text: the JSON object of its attributes, and its format."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the output of ``str`` in this version or an older one.

        Raises ``ResumePointLost`` if another kind of database wrote it, and ``ResumePointTooNew``.
        """
        found: Any = parsed(text)
        try:
            values = {name: found[name] for name in fields_dict(cls).keys() & found.keys()}
            if all(isinstance(value, int if name == "seq" else str) for name, value in values.items()):
                return cls(**values)
        except (AttributeError, TypeError, ValueError):
            pass
        message = "the recorded resume point was written for another kind of database"
        raise ResumePointLost(message)

    def __str__(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))


@frozen
class SqlitePoint(_Point):
    """Everything up to row ``seq`` of the change log has been read. ``token`` is the random token of that row.

    A file that was replaced by an older copy has no row of that number, or one with another token.
    """

    seq: int
    token: str
    source: str = ""
    mark: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """See ``_Point.parse``. A list ``[seq, token]`` is of an older version."""
        match parsed(text):
            case [int(seq), str(token)]:
                return cls(seq, token)
            case _:
                return super().parse(text)


SQLITE_FIRST: Final = SqlitePoint(0, "")
"""The point before the first row."""


@frozen(kw_only=True)
class PostgresPoint(_Point):
    """Every change that ``snapshot`` sees has been read.

    A snapshot (``xmin:xmax:xip,…``) rather than a number is the position, because transactions do not commit in the
    order of any number that they draw (see ``postgres``).

    A large difference is read in pages. During that time ``target`` is the snapshot that the pages lead to, and of the
    changes between ``snapshot`` and ``target`` those up to row ``seq`` have been read. Otherwise ``target`` is "".

    ``system`` and ``timeline`` name the history of the cluster in which the transaction numbers are valid. ``place``
    holds the oids of the database and of the change log, which are different after a dump is restored. Before the first
    batch ``place`` is "", which matches any value, as it does for ``source`` and ``mark``.
    """

    system: str
    timeline: str
    snapshot: str = field(validator=matches_re("[0-9]+:[0-9]+:([0-9]+(,[0-9]+)*)?"))
    place: str = ""
    target: str = ""
    seq: int = 0
    source: str = ""
    mark: str = ""

    @classmethod
    def now(cls, connection: sa.Connection, log: str) -> Self:
        """Return the point after everything visible to the connection. ``log``: the quoted name of the change log.

        The role needs the right to execute ``pg_control_system``.
        """
        return cls(**connection.execute(_NOW, {"log": log}).mappings().one())

    @property
    def next_transaction(self) -> int:
        """Transactions from this number on were not visible (the snapshot's ``xmax``)."""
        return int(self.snapshot.split(":")[1])

    @property
    def in_progress(self) -> list[str]:
        """The transactions below ``next_transaction`` that were open (the snapshot's ``xip``)."""
        return [txid for txid in self.snapshot.split(":")[2].split(",") if txid]

    def has_read(self, other: Self) -> bool:
        """Return whether this snapshot sees everything that the other point's snapshot sees, in the same history."""
        unread = {txid for txid in self.in_progress if int(txid) < other.next_transaction}
        return self.next_transaction >= other.next_transaction and unread <= set(other.in_progress)

    def require_history_of(self, now: Self) -> None:
        """Raise ``ResumePointLost`` unless this point lies in the past of ``now``."""
        if (self.system, self.timeline) != (now.system, now.timeline):
            message = "the database is in another cluster than was recorded, or in a restored one"
            raise ResumePointLost(message)
        if self.place and self.place != now.place:
            message = "the change log is not the one that was recorded; a dump may have been restored"
            raise ResumePointLost(message)
        if self.next_transaction > now.next_transaction:
            message = "the database is in an older state than was recorded"
            raise ResumePointLost(message)


@frozen(kw_only=True)
class History:
    """The history of the change log as stored in ``change_state``.

    ``source`` is the random identity of the change log. ``origin`` is the resume point for an empty event log; every
    change after it is still in the change log. ``mark`` is that of the newest sealed point. ``replaced_mark`` has the
    marks of the points that the event log may hold instead, separated by spaces; it equals ``mark`` once the newest
    point is known to be recorded.
    """

    source: str
    origin: str
    mark: str
    replaced_mark: str

    def require(self, point: PostgresPoint | SqlitePoint) -> None:
        """Raise ``ResumePointLost`` if a recorded point does not belong to this history.

        A point before the origin comes from an older copy of an event log: changes after it have been trimmed.
        """
        if point.source and point.source != self.source:
            message = "the change log belongs to another database than was recorded"
            raise ResumePointLost(message)
        if isinstance(point, PostgresPoint):
            origin = PostgresPoint.parse(self.origin)
            trimmed = origin.system == point.system and not point.has_read(origin)
        else:
            trimmed = point.seq < SqlitePoint.parse(self.origin).seq
        if trimmed:
            message = "changes after the recorded resume point have been trimmed from the change log"
            raise ResumePointLost(message)
        if point.mark and point.mark not in (self.mark, *self.replaced_mark.split()):
            message = "the database or the event log has been restored to an older state"
            raise ResumePointLost(message)


def first(connection: sa.Connection, log: str) -> str:
    """Return the resume point of a change log that was created just now. ``log``: its quoted name.

    It has no ``place``: if an operator runs the previewed SQL of a migration by hand, the change log gets another oid
    than in the preview.
    """
    if connection.dialect.name != POSTGRES:
        return str(SQLITE_FIRST)
    return str(evolve(PostgresPoint.now(connection, log), place=""))


def source_of(text: str) -> str:
    """Return the identity of a point's change log, or "" if the point has none. Raises ``ResumePointTooNew``."""
    match parsed(text):
        case {"source": str(source)}:
            return source
        case _:
            return ""


def is_foreign(text: str, source: str) -> bool:
    """Return whether a point belongs to another change log than ``source``, or to another capture mode.

    False if the point does not say, like those of older versions. Raises ``ResumePointTooNew``.
    """
    match parsed(text):
        case {"identity": _}:  # Capture by ``updated_at``; these points had no source in older versions.
            return True
        case _:
            return source_of(text) not in ("", source)


def identified(text: str, source: str) -> str:
    """Return a point with ``source`` added, unless it names one already. Any other text is returned unchanged.

    Raises ``ResumePointTooNew``.
    """
    if source_of(text):
        return text
    for kind in (PostgresPoint, SqlitePoint):
        with suppress(ResumePointLost):
            return str(evolve(kind.parse(text), source=source))
    return text


def parsed(text: str) -> object:
    """Return the JSON value of a point of any kind; None for text that is not JSON. Raises ``ResumePointTooNew``."""
    try:
        found: object = json.loads(text)
    except ValueError:
        return None
    match found:
        case {"format": int(format_)} if format_ > FORMAT:
            raise ResumePointTooNew(format_, FORMAT)
        case _:
            return found
