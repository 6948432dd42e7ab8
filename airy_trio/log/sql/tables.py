"""The tables of the ``sql`` event store, and how rows are written and read. The caller owns the transaction.

``event_log`` has the events by offset. ``log_state`` is a single row: the epoch, the bounds, the time of the last
append and the resume point. The low bound is stored there because ``min(offset)`` is slow after a mass delete.
``acknowledged`` has the durable subscriptions. ``migrations/log`` creates them.

Text that contains NUL. Postgres cannot store it, but an id or a destination of an SQLite application may contain it. So
NUL is stored as U+0001 followed by ``0``, and U+0001 as itself twice; nearly every text has neither and is stored
unchanged. Equal texts stay equal, so a column can be compared with an ``escaped`` value.
"""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar, assert_never

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from airy_trio.database import POSTGRES, Names, quote_identifier
from airy_trio.database.queries import Query
from airy_trio.events.destinations import Destination, Everything, OfChannel, OfConversation, OfType, Within
from airy_trio.log.position import Position
from airy_trio.log.store import Acknowledgement, Bounds, Claim, StoredEvent, up_to_bytes

EVENTS: Final = "event_log"
STATE: Final = "log_state"
ACKNOWLEDGED: Final = "acknowledged"
COLUMNS: Final = (
    "offset", "appended_at_ms", "type", "object", "conversation_id", "channel_id", "body", "truncated", "age_ms",
)  # fmt: skip
NOW_MS: Final = "cast(extract(epoch from clock_timestamp()) * 1000 as bigint)"
"""The clock of a Postgres store, in milliseconds since 1970."""
INDEXED_CHARS: Final = 200
"""How many characters of an id the index by conversation has on Postgres (migration ``log_0004``)."""
COPY_FROM: Final = 32
"""Events. To insert fewer takes a third of the time that COPY needs to begin and to end."""
ROWS_MAX: Final = 1000
"""In one statement on durable subscriptions: SQLite allows 32,766 parameters, Postgres 65,535."""


class LogTables:
    """The three tables under their names in one database. A dialect adds its clock, its statements and its inserts."""

    place: str
    """A parameter in the driver's own SQL."""
    upsert: Any
    """The dialect's ``insert``, which has ``on_conflict_do_update``."""

    def __init__(self, names: Names, advance: str) -> None:
        metadata = sa.MetaData(schema=names.table_schema)
        types: dict[str, Any] = {
            "offset": sa.BigInteger,
            "appended_at_ms": sa.BigInteger,
            "body": sa.LargeBinary,
            "truncated": sa.Boolean,
            "age_ms": sa.BigInteger,
        }
        self.events = sa.Table(
            names.bare(EVENTS), metadata, *(sa.Column(name, types.get(name, sa.Text)) for name in COLUMNS)
        )
        self.state = sa.Table(
            names.bare(STATE),
            metadata,
            *(sa.Column(name, sa.Text) for name in ("epoch", "resume_point")),
            *(sa.Column(name, sa.BigInteger) for name in ("first", "last", "appended_at_ms")),
        )
        self.acknowledged = sa.Table(
            names.bare(ACKNOWLEDGED),
            metadata,
            *(sa.Column(name, sa.Text) for name in ("owner", "name", "holder", "epoch")),
            *(sa.Column(name, sa.BigInteger) for name in ("offset", "used_at_ms")),
        )
        columns = ", ".join(map(quote_identifier, COLUMNS))
        places = ", ".join([self.place] * len(COLUMNS))
        self._insert_one = f"insert into {names.quoted(EVENTS)} ({columns}) values ({places})"  # noqa: S608 - names quoted
        self._advance = Query(sa.text(advance))
        self._state_now = sa.select(self.state)

    def bounds(self, connection: sa.Connection) -> Bounds:
        """Return the bounds of the retained events, with the store's clock."""
        row = connection.execute(self._state_now).one()
        return Bounds(epoch=row.epoch, first=row.first, last=row.last, now_ms=self._now_ms(row))

    def move_head(
        self, connection: sa.Connection, expected: Position, count: int, resume_point: str, replaces: str | None
    ) -> int | None:
        """Move the head by ``count`` events and store the resume point, if the head is ``expected``.

        ``replaces``: the resume point that must be stored now; None: any. Returns the time of this append, which never
        falls, or None if the head or the resume point is another one. Other writers wait until this transaction has
        ended, and then find the head moved.
        """
        arguments = {
            "epoch": expected.epoch,
            "expected": expected.offset,
            "last": expected.offset + count,
            "replaces": replaces,
            "resume_point": resume_point,
            **self._advance_arguments(expected, count),
        }
        moved = self._advance.rows(connection, arguments)
        return int(moved[0][0]) if moved else None

    def insert(self, connection: sa.Connection, events: Sequence[StoredEvent]) -> None:
        """Insert events with the offsets that they have; through the driver, which costs a third of SQLAlchemy."""
        driver: Any = connection.connection.driver_connection
        if len(events) == 1:  # frequent, and executemany would begin a pipeline first
            driver.cursor().execute(self._insert_one, _values(events[0]))
        else:
            driver.cursor().executemany(self._insert_one, map(_values, events))

    def select(
        self, connection: sa.Connection, wanted: "sa.Select[Any]", order: sa.ColumnElement[Any], bytes_max: int | None
    ) -> list[StoredEvent]:
        """Return the selected events in an order, up to ``bytes_max`` bytes of bodies (``up_to_bytes``)."""
        ordered = wanted.order_by(order)
        if bytes_max is not None:
            ordered = self._limited(ordered, order, bytes_max)
        with contextlib.closing(connection.execute(ordered)) as rows:
            return list(up_to_bytes(stored(rows), bytes_max))

    def last_before(self, connection: sa.Connection, bounds: Bounds, before_ms: int) -> int:
        """Return the newest offset appended before a time, by bisection: times never fall as offsets grow."""
        low, high = bounds.first - 1, bounds.last
        while low < high:
            middle = (low + high + 1) // 2
            appended_at = sa.select(self.events.c.appended_at_ms).where(self.events.c.offset == middle)
            if connection.execute(appended_at).scalar_one() < before_ms:
                low = middle
            else:
                high = middle - 1
        return low

    def newest_of_each(self, before: int, upto: int, limit: int, destination: Destination | None) -> "sa.Select[Any]":
        """Select the newest event of each object of a destination between two offsets, at most ``limit`` of them."""
        offset = self.events.c.offset
        newest = (
            sa.select(sa.func.max(offset).label("newest"))
            .where(offset > before, offset <= upto, self.belongs_to(destination))
            .group_by(self.events.c.object)
            .order_by(sa.desc("newest"))
            .limit(limit)
            .subquery()
        )
        return sa.select(self.events).join(newest, offset == newest.c.newest)

    def resume_point(self, connection: sa.Connection) -> str | None:
        """Return the resume point that the last append stored."""
        found: str | None = connection.execute(sa.select(self.state.c.resume_point)).scalar_one()
        return found

    def begin_epoch(self, connection: sa.Connection, expected: Position, epoch: str, resume_point: str | None) -> bool:
        """Begin an epoch if the head is ``expected``; return whether it was.

        Offsets go on from the head, so that all old rows are below ``first``, and nothing reads or appends there.
        """
        state = self.state.c
        unmoved = sa.and_(state.epoch == expected.epoch, state.last == expected.offset)
        changed = {"epoch": epoch, "first": expected.offset + 1, "resume_point": resume_point}
        return connection.execute(sa.update(self.state).where(unmoved).values(changed)).rowcount > 0

    def make_synchronous(self, connection: sa.Connection) -> None:
        """Make the commit of this transaction wait for the disk. SQLite's always does."""

    def belongs_to(self, destination: Destination | None) -> sa.ColumnElement[bool]:
        """Return the condition for events of a destination; None is every event."""
        columns = self.events.c
        match destination:
            case None | Everything():
                return sa.true()
            case OfType(type=type_):
                return columns.type == type_
            case OfChannel(id=id_):
                return columns.channel_id == escaped(id_)
            case OfConversation(id=id_):
                return self._in_conversation(escaped(id_))
            case Within(destination=wider, channels=channels):
                return sa.and_(self.belongs_to(wider), columns.channel_id.in_(sorted(map(escaped, channels))))
            case _:
                assert_never(destination)

    def _now_ms(self, row: "sa.Row[Any]") -> int:
        raise NotImplementedError

    def _advance_arguments(self, expected: Position, count: int) -> dict[str, object]:
        raise NotImplementedError

    def _limited(self, ordered: "sa.Select[Any]", _order: sa.ColumnElement[Any], _bytes_max: int) -> "sa.Select[Any]":
        return ordered

    def _in_conversation(self, id_: str) -> sa.ColumnElement[bool]:
        return self.events.c.conversation_id == id_


# Compare and move the head in one statement. If another transaction has changed the row meanwhile, Postgres compares
# again. {later} and {now_ms} are the dialect's.
_ADVANCE: Final = (
    "update {state} set last = :last, resume_point = :resume_point, "
    "appended_at_ms = {later}(appended_at_ms, {now_ms}) "
    "where epoch = :epoch and last = :expected and (cast(:replaces as text) is null or resume_point = :replaces) "
    "returning appended_at_ms"
)


class SqliteTables(LogTables):
    """SQLite: its clock is this machine's. It returns row after row, so that a rest that is not read costs nothing."""

    place = "?"
    upsert = staticmethod(sqlite_insert)

    def __init__(self, names: Names) -> None:
        super().__init__(names, _ADVANCE.format(state=names.quoted(STATE), later="max", now_ms=":now_ms"))

    def _now_ms(self, _row: object) -> int:
        return int(time.time() * 1000)

    def _advance_arguments(self, _expected: Position, _count: int) -> dict[str, object]:
        return {"now_ms": int(time.time() * 1000)}


class PostgresTables(LogTables):
    """Postgres: its own clock; a writer notifies ``channel`` with the position of the new head when it commits."""

    place = "%b"
    upsert = staticmethod(postgres_insert)

    def __init__(self, names: Names) -> None:
        advance = _ADVANCE.format(state=names.quoted(STATE), later="greatest", now_ms=NOW_MS)
        notify = "case when cast(:channel as text) is not null then cast(pg_notify(:channel, :head) as text) end"
        super().__init__(names, f"{advance}, {notify}")
        self.channel = f"{names.schema}_log"
        self._state_now = self._state_now.add_columns(sa.literal_column(NOW_MS, sa.BigInteger).label("now_ms"))
        columns = ", ".join(map(quote_identifier, COLUMNS))
        self._copy = f"copy {names.quoted(EVENTS)} ({columns}) from stdin (format binary)"

    def insert(self, connection: sa.Connection, events: Sequence[StoredEvent]) -> None:
        """See ``LogTables.insert``."""
        if len(events) < COPY_FROM:
            super().insert(connection, events)
            return
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(self._copy) as copy:
            copy.set_types(("int8", "int8", "text", "text", "text", "text", "bytea", "bool", "int8"))
            for event in events:
                copy.write_row(_values(event))

    def begin_epoch(self, connection: sa.Connection, expected: Position, epoch: str, resume_point: str | None) -> bool:
        """See ``LogTables.begin_epoch``. The notification is empty: it names no head."""
        begun = super().begin_epoch(connection, expected, epoch, resume_point)
        if begun:
            connection.execute(sa.text("select pg_notify(:channel, '')"), {"channel": self.channel})
        return begun

    def make_synchronous(self, connection: sa.Connection) -> None:
        """See ``LogTables.make_synchronous``: whatever the server's default is."""
        connection.execute(sa.text("set local synchronous_commit = on"))

    def _now_ms(self, row: "sa.Row[Any]") -> int:
        now_ms: int = row.now_ms
        return now_ms

    def _advance_arguments(self, expected: Position, count: int) -> dict[str, object]:
        # Without events there is nothing to wake a follower for.
        return {"channel": self.channel if count else None, "head": str(expected.at(expected.offset + count))}

    def _limited(self, ordered: "sa.Select[Any]", order: sa.ColumnElement[Any], bytes_max: int) -> "sa.Select[Any]":
        """Let the database sum up the sizes: the driver takes all rows of a result into memory."""
        size = sa.func.octet_length(self.events.c.body)
        before = (sa.func.sum(size).over(order_by=order) - size).label("before")
        counted = ordered.add_columns(before).subquery()
        descending = isinstance(order, sa.UnaryExpression)
        last = counted.c.offset.desc() if descending else counted.c.offset
        return sa.select(*(counted.c[name] for name in COLUMNS)).where(counted.c.before < bytes_max).order_by(last)

    def _in_conversation(self, id_: str) -> sa.ColumnElement[bool]:
        # An index row of Postgres has room for 2704 bytes, so the index has only the beginning of an id.
        chars: sa.ColumnElement[int] = sa.literal_column(str(INDEXED_CHARS))
        column = self.events.c.conversation_id
        return sa.and_(sa.func.left(column, chars) == id_[:INDEXED_CHARS], column == id_)


def log_tables(names: Names) -> PostgresTables | SqliteTables:
    """Return the tables of one database."""
    return PostgresTables(names) if names.dialect == POSTGRES else SqliteTables(names)


def _values(event: StoredEvent) -> Sequence[Any]:
    """Return the row of an event, in the order of ``COLUMNS``, which is the order of its own fields."""
    # Printable text needs no escaping, and nearly all is: one test for three fields.
    if f"{event.object}{event.conversation_id}{event.channel_id}".isprintable():
        return event
    texts = escaped(event.object), escaped(event.conversation_id), escaped(event.channel_id)
    return event.offset, event.appended_at_ms, event.type, *texts, event.body, event.truncated, event.age_ms


def stored(rows: Iterable[Any]) -> Iterator[StoredEvent]:
    """Yield the events of whole rows, in the order of ``COLUMNS``."""
    for offset, appended_at_ms, type_, object_, conversation_id, channel_id, body, truncated, age_ms in rows:
        texts = unescaped(object_), unescaped(conversation_id), unescaped(channel_id)
        yield StoredEvent(offset, appended_at_ms, type_, *texts, bytes(body), bool(truncated), age_ms)


_NUL: Final = "\0"
_MARK: Final = "\1"
_MARKED: Final = re.compile(f"{_MARK}([{_MARK}0])")

Text = TypeVar("Text", str, str | None)


def escaped(text: Text) -> Text:
    """Return a text as it is stored in a column."""
    if not text or (_NUL not in text and _MARK not in text):
        return text
    return text.replace(_MARK, _MARK * 2).replace(_NUL, f"{_MARK}0")


def unescaped(text: Text) -> Text:
    """Return the text that ``escaped`` was given."""
    if not text or _MARK not in text:
        return text
    return _MARKED.sub(lambda found: _MARK if found[1] == _MARK else _NUL, text)


_NO_EPOCH: Final = ""  # of a row that was claimed and has no acknowledgement yet

Key = tuple[str, str]
"""Owner and name."""


class DurableTable:
    """Reads and writes ``acknowledged``.

    One statement compares the claim and writes, so nothing has to be locked before it. Rows are written in the order
    of their keys, so that two nodes cannot wait for each other's rows.
    """

    def __init__(self, tables: LogTables) -> None:
        self._rows = tables.acknowledged
        self._upsert = tables.upsert

    def position(self, connection: sa.Connection, owner: str, name: str) -> Position | None:
        """Return the position up to which all is acknowledged; None if nothing is, or there is no such row."""
        columns = self._rows.c
        wanted = sa.select(columns.epoch, columns.offset).where(columns.owner == owner, columns.name == name)
        found = connection.execute(wanted).one_or_none()
        return _position(*found) if found else None

    def claim(self, connection: sa.Connection, claims: Sequence[Claim], now_ms: int) -> dict[Key, Position | None]:
        """Store the claims; return the position of each."""
        new = [{**_row(claim, now_ms), "epoch": _NO_EPOCH, "offset": 0} for claim in claims]
        columns = self._rows.c
        found: dict[Key, Position | None] = {}
        for rows in _chunks(new):
            statement = self._upsert(self._rows).values(rows)
            changed = {"holder": statement.excluded.holder, "used_at_ms": statement.excluded.used_at_ms}
            upserted = statement.on_conflict_do_update(index_elements=("owner", "name"), set_=changed).returning(
                columns.owner, columns.name, columns.epoch, columns.offset
            )
            for owner, name, epoch, offset in connection.execute(upserted):
                found[owner, name] = _position(epoch, offset)
        return found

    def acknowledge(
        self, connection: sa.Connection, acknowledgements: Sequence[Acknowledgement], now_ms: int
    ) -> set[Key]:
        """Store the position of each claim that was not replaced, unless a later one of the same epoch is stored.

        Returns the keys of these claims.
        """
        new = [
            {**_row(one.claim, now_ms), "epoch": one.position.epoch, "offset": one.position.offset}
            for one in acknowledgements
        ]
        columns = self._rows.c
        kept: set[Key] = set()
        for rows in _chunks(new):
            statement = self._upsert(self._rows).values(rows)
            given = statement.excluded
            later = sa.and_(columns.epoch == given.epoch, columns.offset > given.offset)
            changed = {
                "epoch": given.epoch,
                "offset": sa.case((later, columns.offset), else_=given.offset),
                "used_at_ms": given.used_at_ms,
            }
            upserted = statement.on_conflict_do_update(
                index_elements=("owner", "name"), set_=changed, where=columns.holder == given.holder
            ).returning(columns.owner, columns.name)
            kept.update((owner, name) for owner, name in connection.execute(upserted))
        return kept


def _row(claim: Claim, now_ms: int) -> dict[str, Any]:
    return {"owner": claim.owner, "name": claim.name, "holder": claim.token, "used_at_ms": now_ms}


def _chunks(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows.sort(key=lambda row: (row["owner"], row["name"]))
    for start in range(0, len(rows), ROWS_MAX):
        yield rows[start : start + ROWS_MAX]


def _position(epoch: str, offset: int) -> Position | None:
    return None if epoch == _NO_EPOCH else Position(epoch, offset)
