"""The tables of the ``sql`` event store as both dialects know them, and how rows go in and come out.

``event_log`` holds the events by offset; ``log_state`` is a single row with the epoch, the bounds and the resume
point; ``acknowledged`` holds the durable subscriptions (``sql_durables``). Made by ``migrations/log``. Refuses to know
when a transaction begins and ends.

Any text in a column, though Postgres takes no NUL: an id of an SQLite application may hold one, or a destination.

NUL is written as U+0001 and ``0``, U+0001 as itself twice; a text without the two, which nearly every one is, stands as
it is. Equal texts stay equal, so that columns can be compared with what ``written`` gives.

The rows of durable subscriptions in the ``sql`` event store: who holds each, and up to where all is acknowledged.

One statement compares the claim and writes: nothing has to be locked before it. Rows are written in the order of
their keys, so that two nodes never wait for each other. Refuses to know when a transaction begins and ends.
"""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Self, TypeVar, assert_never

import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from airy_trio.database import POSTGRES, Names, quote_identifier
from airy_trio.database.queries import Query
from airy_trio.events.destinations import Destination, Everything, OfChannel, OfConversation, OfType, Within
from airy_trio.log.position import Position
from airy_trio.log.store import Acknowledgement, Bounds, Claim, StoredEvent, up_to_bytes

_NUL: Final = "\0"
_MARK: Final = "\1"
_MARKED: Final = re.compile(f"{_MARK}([{_MARK}0])")

Text = TypeVar("Text", str, str | None)


def written(text: Text) -> Text:
    """The text as it stands in the column."""
    if not text or (_NUL not in text and _MARK not in text):
        return text
    return text.replace(_MARK, _MARK * 2).replace(_NUL, f"{_MARK}0")


def read(text: Text) -> Text:
    """The text that ``written`` was given."""
    if not text or _MARK not in text:
        return text
    return _MARKED.sub(lambda found: _MARK if found[1] == _MARK else _NUL, text)


EVENTS = "event_log"
STATE = "log_state"
ACKNOWLEDGED = "acknowledged"
INDEXED_CHARS: Final = 200
"""What the index by conversation holds of an id on Postgres (migration ``log_0004``)."""
COLUMNS = ("offset", "appended_at_ms", "type", "object", "conversation_id", "channel_id", "body", "truncated", "age_ms")
_COPIED_AS = ("int8", "int8", "text", "text", "text", "text", "bytea", "bool", "int8")
_COPY_FROM = 32  # events: of fewer, a plain insert needs a third of the time that COPY needs to begin and to end
_SYNCHRONOUS = sa.text("set local synchronous_commit = on")
NOW_MS = "cast(extract(epoch from clock_timestamp()) * 1000 as bigint)"


@frozen(kw_only=True)
class LogTables:
    """The three tables under their names in one database."""

    postgres: bool
    events: sa.Table
    state: sa.Table
    acknowledged: sa.Table
    advance: Query
    copy: str
    insert_one: str

    @classmethod
    def named(cls, names: Names) -> Self:
        """The tables as they are called in a database."""
        metadata = sa.MetaData(schema=names.table_schema)
        types: dict[str, Any] = {
            "offset": sa.BigInteger,
            "appended_at_ms": sa.BigInteger,
            "body": sa.LargeBinary,
            "truncated": sa.Boolean,
            "age_ms": sa.BigInteger,
        }
        columns = ", ".join(quote_identifier(name) for name in COLUMNS)
        postgres = names.dialect == POSTGRES
        places = ", ".join(["%b" if postgres else "?"] * len(COLUMNS))
        return cls(
            postgres=postgres,
            advance=_advance(names),
            insert_one=f"insert into {names.quoted(EVENTS)} ({columns}) values ({places})",  # noqa: S608 - names quoted
            events=sa.Table(
                names.bare(EVENTS), metadata, *(sa.Column(name, types.get(name, sa.Text)) for name in COLUMNS)
            ),
            state=sa.Table(
                names.bare(STATE),
                metadata,
                *(sa.Column(name, sa.Text) for name in ("epoch", "resume_point")),
                *(sa.Column(name, sa.BigInteger) for name in ("first", "last", "appended_at_ms")),
            ),
            acknowledged=sa.Table(
                names.bare(ACKNOWLEDGED),
                metadata,
                *(sa.Column(name, sa.Text) for name in ("owner", "name", "holder", "epoch")),
                *(sa.Column(name, sa.BigInteger) for name in ("offset", "used_at_ms")),
            ),
            copy=f"copy {names.quoted(EVENTS)} ({columns}) from stdin (format binary)",
        )

    def bounds(self, connection: sa.Connection) -> Bounds:
        """What is retained, with the store's clock: the database's on Postgres, this machine's on SQLite."""
        clock: list[sa.Label[int]] = [sa.literal_column(NOW_MS, sa.BigInteger).label("now_ms")]
        row = connection.execute(sa.select(self.state, *clock if self.postgres else ())).one()
        now_ms = row.now_ms if self.postgres else int(time.time() * 1000)
        return Bounds(epoch=row.epoch, first=row.first, last=row.last, now_ms=now_ms)

    def move_head(
        self,
        connection: sa.Connection,
        expected: Position,
        count: int,
        points: tuple[str | None, str],
        rings: str | None,
    ) -> int | None:
        """Move the head by ``count`` events and store the resume point, if the head is where it is expected.

        ``points``: what is stored now, where that is to be compared as well, and what is to be.
        Gives the time of this append, which never falls; None where either is another. Whoever else appends waits
        until this transaction ends, and then finds the head moved. ``rings``: on Postgres, the channel to notify.
        """
        arguments: dict[str, object] = {
            "epoch": expected.epoch,
            "expected": expected.offset,
            "last": expected.offset + count,
            "replaces": points[0],
            "resume_point": points[1],
        }
        if self.postgres:
            arguments |= {"channel": rings, "head": str(expected.at(expected.offset + count))}
        else:
            arguments["now_ms"] = int(time.time() * 1000)
        moved = self.advance.rows(connection, arguments)
        return int(moved[0][0]) if moved else None

    def insert(self, connection: sa.Connection, events: Sequence[StoredEvent]) -> None:
        """Write events with the offsets that they have. Through the driver, at a third of the cost."""
        driver: Any = connection.connection.driver_connection
        if len(events) == 1:  # what there is when little happens: executemany begins a pipeline first
            driver.cursor().execute(self.insert_one, _values(events[0]))
            return
        if not self.postgres or len(events) < _COPY_FROM:
            driver.cursor().executemany(self.insert_one, map(_values, events))
            return
        with driver.cursor() as cursor, cursor.copy(self.copy) as copy:
            copy.set_types(_COPIED_AS)
            for event in events:
                copy.write_row(_values(event))

    def select(
        self, connection: sa.Connection, wanted: "sa.Select[Any]", order: sa.ColumnElement[Any], bytes_max: int | None
    ) -> list[StoredEvent]:
        """The events of a selection of whole rows, in an order; of their bodies up to ``bytes_max`` (``up_to_bytes``).

        SQLite gives row after row, so that the rest is not read. The driver of Postgres takes all that there is, which
        is why the database itself counts there.
        """
        ordered = wanted.order_by(order)
        if self.postgres and bytes_max is not None:
            size = sa.func.octet_length(self.events.c.body)
            before = (sa.func.sum(size).over(order_by=order) - size).label("before")
            counted = ordered.add_columns(before).subquery()
            columns = [counted.c[name] for name in COLUMNS]
            descending = isinstance(order, sa.UnaryExpression)
            last = counted.c.offset.desc() if descending else counted.c.offset
            ordered = sa.select(*columns).where(counted.c.before < bytes_max).order_by(last)
        with contextlib.closing(connection.execute(ordered)) as rows:
            return list(up_to_bytes(stored(rows), bytes_max))

    def last_before(self, connection: sa.Connection, bounds: Bounds, before_ms: int) -> int:
        """The newest offset appended before a time, by bisection: the times never fall as offsets grow."""
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
        """Of the events of a destination between two offsets the newest of each object, at most ``limit`` of them."""
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
        """The resume point that the last append has stored."""
        found: str | None = connection.execute(sa.select(self.state.c.resume_point)).scalar_one()
        return found

    def begin_epoch(self, connection: sa.Connection, expected: Position, epoch: str, resume_point: str | None) -> bool:
        """Begin an epoch after ``expected`` and return True; do nothing and return False if that is not the head.

        Offsets go on from there, so that all old rows lie below ``first``, where no read looks and no append writes.
        """
        state = self.state.c
        unmoved = sa.and_(state.epoch == expected.epoch, state.last == expected.offset)
        changed = {"epoch": epoch, "first": expected.offset + 1, "resume_point": resume_point}
        return connection.execute(sa.update(self.state).where(unmoved).values(changed)).rowcount > 0

    def make_synchronous(self, connection: sa.Connection) -> None:
        """On Postgres, let this transaction's commit wait for the disk, whatever the server's default."""
        if self.postgres:
            connection.execute(_SYNCHRONOUS)

    def belongs_to(self, destination: Destination | None) -> sa.ColumnElement[bool]:
        """The condition for events of a destination; None is every event."""
        columns = self.events.c
        match destination:
            case None | Everything():
                return sa.true()
            case OfType(type=type_):
                return columns.type == type_
            case OfChannel(id=id_):
                return columns.channel_id == written(id_)
            case OfConversation(id=id_):
                same = columns.conversation_id == written(id_)
                if not self.postgres:
                    return same
                # Of a Postgres' index row there is room for 2704 octets: it holds what an id begins with.
                chars: sa.ColumnElement[int] = sa.literal_column(str(INDEXED_CHARS))
                return sa.and_(sa.func.left(columns.conversation_id, chars) == written(id_)[:INDEXED_CHARS], same)
            case Within(destination=wider, channels=channels):
                ids = sorted(map(written, channels))
                return sa.and_(self.belongs_to(wider), columns.channel_id.in_(ids))
            case _:
                assert_never(destination)


def _values(event: StoredEvent) -> Sequence[Any]:
    """The row of an event, in the order of ``COLUMNS``, which is that of its own fields."""
    if f"{event.object}{event.conversation_id}{event.channel_id}".isprintable():  # only spares what follows
        return event
    texts = written(event.object), written(event.conversation_id), written(event.channel_id)
    return event.offset, event.appended_at_ms, event.type, *texts, event.body, event.truncated, event.age_ms


def stored(rows: Iterable[Any]) -> Iterator[StoredEvent]:
    """The events of whole rows, in the order of ``COLUMNS``."""
    for offset, appended_at_ms, type_, object_, conversation_id, channel_id, body, truncated, age_ms in rows:
        texts = read(object_), read(conversation_id), read(channel_id)
        yield StoredEvent(offset, appended_at_ms, type_, *texts, bytes(body), bool(truncated), age_ms)


def _advance(names: Names) -> Query:
    """Compare and move in one statement: where the row was changed by another transaction, Postgres compares again."""
    now_ms, later = (NOW_MS, "greatest") if names.dialect == POSTGRES else (":now_ms", "max")
    ring = ", case when cast(:channel as text) is not null then cast(pg_notify(:channel, :head) as text) end"
    statement = sa.text(
        f"update {names.quoted(STATE)} set last = :last, resume_point = :resume_point, "  # noqa: S608 - names quoted
        f"appended_at_ms = {later}(appended_at_ms, {now_ms}) "
        "where epoch = :epoch and last = :expected and (cast(:replaces as text) is null or resume_point = :replaces) "
        "returning appended_at_ms" + (ring if names.dialect == POSTGRES else "")
    )
    return Query(statement)


ROWS_MAX: Final = 1000
"""In one statement: SQLite takes 32 766 parameters, PostgreSQL 65 535."""
_NO_EPOCH: Final = ""
"""Of a row that is held, of which nothing was acknowledged yet."""

Key = tuple[str, str]
"""Owner and name."""


class DurableTable:
    """Reads and writes ``acknowledged``."""

    def __init__(self, tables: LogTables) -> None:
        self._rows = tables.acknowledged
        self._insert: Any = postgres_insert if tables.postgres else sqlite_insert

    def position(self, connection: sa.Connection, owner: str, name: str) -> Position | None:
        """Up to where all is acknowledged; None where nothing is, or nobody has held it."""
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
            statement = self._insert(self._rows).values(rows)
            changed = {"holder": statement.excluded.holder, "used_at_ms": statement.excluded.used_at_ms}
            written = statement.on_conflict_do_update(index_elements=("owner", "name"), set_=changed).returning(
                columns.owner, columns.name, columns.epoch, columns.offset
            )
            for owner, name, epoch, offset in connection.execute(written):
                found[owner, name] = _position(epoch, offset)
        return found

    def acknowledge(
        self, connection: sa.Connection, acknowledgements: Sequence[Acknowledgement], now_ms: int
    ) -> set[Key]:
        """Write the position of each that is still the newest claim, unless a later one of the same epoch stands there.

        Gives the keys of those that are.
        """
        new = [
            {**_row(one.claim, now_ms), "epoch": one.position.epoch, "offset": one.position.offset}
            for one in acknowledgements
        ]
        columns = self._rows.c
        kept: set[Key] = set()
        for rows in _chunks(new):
            statement = self._insert(self._rows).values(rows)
            given = statement.excluded
            later = sa.and_(columns.epoch == given.epoch, columns.offset > given.offset)
            changed = {
                "epoch": given.epoch,
                "offset": sa.case((later, columns.offset), else_=given.offset),
                "used_at_ms": given.used_at_ms,
            }
            written = statement.on_conflict_do_update(
                index_elements=("owner", "name"), set_=changed, where=columns.holder == given.holder
            ).returning(columns.owner, columns.name)
            kept.update((owner, name) for owner, name in connection.execute(written))
        return kept


def _row(claim: Claim, now_ms: int) -> dict[str, Any]:
    return {"owner": claim.owner, "name": claim.name, "holder": claim.token, "used_at_ms": now_ms}


def _chunks(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows.sort(key=lambda row: (row["owner"], row["name"]))
    for start in range(0, len(rows), ROWS_MAX):
        yield rows[start : start + ROWS_MAX]


def _position(epoch: str, offset: int) -> Position | None:
    """The position in a row; None where nothing was acknowledged yet."""
    return None if epoch == _NO_EPOCH else Position(epoch, offset)
