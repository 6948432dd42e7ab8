"""The tables of the ``sql`` event store, the statements on them, and how rows are written and read.

``event_log`` has the events by offset. ``log_state`` is a single row: the epoch, the bounds, the time of the last
append and the resume point. The low bound is stored there because ``min(offset)`` is slow after a mass delete.
``log_current`` has the current state: the newest event of each object. ``log_ended`` has objects that have ended, each
with the head at its end: an event of theirs up to there does not count any more. ``acknowledged`` has the durable
subscriptions. ``migrations/log`` creates them.

Every statement is made once, with named parameters, and compiled once by each dialect.

Text that contains NUL. Postgres cannot store it, but an id or a destination of an SQLite application may contain it. So
NUL is stored as U+0001 followed by ``0``, and U+0001 as itself twice; nearly every text has neither and is stored
unchanged. Equal texts stay equal, so a column can be compared with an ``escaped`` value.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Final, TypeVar, assert_never

import sqlalchemy as sa
from attrs import field, frozen
from sqlalchemy.dialects.postgresql import ARRAY, OID
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from airy_trio.database import FOLD_CLASS, POSTGRES, Names
from airy_trio.events.destinations import Destination, Everything, OfChannel, OfConversation, OfType, Within
from airy_trio.log.store import StoredEvent

EVENTS: Final = "event_log"
STATE: Final = "log_state"
CURRENT: Final = "log_current"
ENDED: Final = "log_ended"
ACKNOWLEDGED: Final = "acknowledged"
STATE_FORM: Final = "2 "
"""The prefix of ``state_at``. Servers before ``log_0009`` write none: neither version continues the other's state."""
COLUMNS: Final[Mapping[str, Any]] = {
    "offset": sa.BigInteger,
    "appended_at_ms": sa.BigInteger,
    "type": sa.Text,
    "object": sa.Text,
    "conversation_id": sa.Text,
    "channel_id": sa.Text,
    "body": sa.LargeBinary,
    "truncated": sa.Boolean,
    "age_ms": sa.BigInteger,
}
"""The columns of an event, in the order of ``StoredEvent``."""
NOW_MS: Final = "cast(extract(epoch from clock_timestamp()) * 1000 as bigint)"
"""The clock of a Postgres store, in milliseconds since 1970."""
INDEXED_CHARS: Final = 200
"""How many characters of an id the indexes of Postgres have (migrations ``log_0004`` and ``log_0007``)."""
DIGEST_BYTES: Final = 16
FOLD_LOCKS_S: Final = 5
"""How long a fold in Postgres waits for a lock. An append that hangs holds a row of it until another append ends it."""
FOLD_SCAN: Final = 10
"""A fold scans at most ten times as many events as it may add."""
FOLD_BYTES: Final = 512 * 1024
"""Bytes of bodies after which a fold ends."""
UNLIMITED: Final = 2**62
"""Bytes of bodies in a read without ``bytes_max``."""

Durable = tuple[str, str, str, str, int]
"""What is given for one durable subscription: owner, name, holder, epoch, offset."""
_GIVEN: Final = {"owner": sa.Text, "name": sa.Text, "holder": sa.Text, "epoch": sa.Text, "offset": sa.BigInteger}


@frozen
class Step:
    """A statement of a unit of work and its parameters. ``convert`` makes the step's result of its rows, if any."""

    statement: Any
    values: Mapping[str, Any] = field(factory=dict)
    convert: Callable[[Iterable[Any]], Any] = list


class LogTables:
    """The tables under their names in one database, and the statements on them.

    ``bounds`` and ``aged`` return the columns of ``store.StateRow``. ``before_fold`` and ``before_kept``: the steps
    that precede a fold and ``kept`` in the same transaction.
    """

    before_fold: Sequence[Step] = ()
    before_kept: Sequence[Step] = ()

    def __init__(self, names: Names, now_ms: sa.ColumnElement[int], insert: Callable[[sa.TableClause], Any]) -> None:
        def table(name: str, columns: Mapping[str, Any]) -> sa.TableClause:
            of = (sa.column(column, type_) for column, type_ in columns.items())
            return sa.table(names.bare(name), *of, schema=names.table_schema)

        texts = ("epoch", "resume_point", "generation", "marks", "state_at")
        numbers = ("id", "first", "last", "folded")
        self.events = table(EVENTS, COLUMNS)
        self.state = table(STATE, dict.fromkeys(texts, sa.Text) | dict.fromkeys(numbers, sa.BigInteger))
        self.current = table(CURRENT, {"digest": sa.LargeBinary, "generation": sa.Text, **COLUMNS})
        self.ended = table(ENDED, {"digest": sa.LargeBinary, "offset": sa.BigInteger})
        self.acknowledged = table(ACKNOWLEDGED, {**_GIVEN, "used_at_ms": sa.BigInteger})
        self._now_ms = now_ms
        self._insert = insert
        self._made = cache(lambda make, values: make(values))  # the statements for destinations
        state, durable = self.state.c, self.acknowledged.c
        given = sa.bindparam
        # A server of an earlier version moves the head and the resume point, but leaves ``state_at`` or writes it in
        # another form. The state lacks the events of such an append, so it counts only while all three agree.
        head = state.epoch + "-" + sa.cast(state.last, sa.Text) + " " + sa.func.coalesce(state.resume_point, "")
        self._in_step = state.state_at == STATE_FORM + head
        self.bounds = sa.select(
            state.epoch, state.first, state.last, state.resume_point, now_ms.label("now_ms"),
            state.generation, state.marks, state.folded, self._in_step.label("in_step"),
        )  # fmt: skip
        # The table has one row. But while any transaction stays open for long, Postgres keeps every version of it. With
        # 100,000 versions a scan, which reads all of them, takes 1.5 ms. The index has the newest ones at its end, and
        # takes 0.16 ms. With one version both take 0.12 ms.
        self.bounds = self.bounds.order_by(state.id.desc()).limit(1)
        self.aged = self.bounds.add_columns(self._last_before(now_ms - given("age_ms", type_=sa.BigInteger)))
        self._prepare_fold()
        self._prepare_trim()
        self.oldest_use = sa.select(sa.func.min(durable.used_at_ms))
        self.delete_durables = sa.delete(self.acknowledged).where(durable.used_at_ms < given("unused_before_ms"))
        self.position = sa.select(durable.epoch, durable.offset).where(
            durable.owner == given("owner"), durable.name == given("name")
        )

    def _prepare_fold(self) -> None:
        """Make the statements by which events are added to the current state.

        ``foldable``: three values about the next ``:limit`` events of ``:types``, the offset of the last one that fits
        into ``:fold_bytes``, how many fit, and how many there are. ``over``: digests of objects whose end the state has
        reached. ``advance_state`` comes after ``fold``, so that its row is locked only briefly.
        """
        event, state, kept, ended = self.events.c, self.state.c, self.current.c, self.ended.c
        low, high = (sa.bindparam(name, type_=sa.BigInteger) for name in ("low", "high"))
        limit = sa.bindparam("limit", type_=sa.BigInteger)
        folded = sa.select(state.folded).scalar_subquery()
        of_types = self._is_any(event.type, "types")
        some = sa.select(event.offset).where(
            event.offset > folded, event.offset <= folded + FOLD_SCAN * limit, of_types
        )
        size = sa.func.length(event.body)
        # The bytes before an event, so that the first one fits even if it is large, and every fold makes progress.
        before = (sa.func.sum(size).over(order_by=event.offset) - size).label("before")
        found = some.add_columns(before).order_by(event.offset).limit(limit).subquery()
        fits = sa.case((found.c.before < sa.bindparam("fold_bytes", type_=sa.BigInteger), found.c.offset))
        self.foldable = sa.select(sa.func.max(fits), sa.func.count(fits), sa.func.count())
        self.over = sa.select(ended.digest).where(ended.offset <= folded).order_by(ended.offset).limit(limit)
        unmoved = sa.and_(
            state.epoch == sa.bindparam("of", type_=sa.Text),
            state.generation == sa.bindparam("of_generation", type_=sa.Text),
            state.folded == low,
        )
        between = sa.and_(event.offset > low, event.offset <= high)
        # Only the newest event of each object: Postgres rejects an upsert that would change a row twice.
        newest = sa.select(sa.func.max(event.offset)).where(between, of_types).group_by(event.object)
        added = sa.select(
            self._digest(event.object),
            sa.bindparam("of_generation", type_=sa.Text),
            *(event[name] for name in COLUMNS),
        ).where(between, event.offset.in_(newest), sa.exists().where(unmoved))
        insert = self._insert(self.current).from_select(["digest", "generation", *COLUMNS], added)
        changed = {name: insert.excluded[name] for name in ("generation", *COLUMNS)}
        self.fold = insert.on_conflict_do_update(index_elements=("digest",), set_=changed)
        self.advance_state = sa.update(self.state).where(unmoved).values(folded=high).returning(state.folded)
        # If the object exists again, the state may have an event after its end already, and that one stays.
        ended_at = sa.select(ended.offset).where(ended.digest == kept.digest).scalar_subquery()
        self.delete_ended = sa.delete(self.current).where(self._is_any(kept.digest, "digests"), kept.offset <= ended_at)
        # The digests were found in an earlier transaction. If an object has ended again since then, later than ``low``,
        # its row is still needed. Rows that an append has locked stay: it writes them in another order, and both would
        # wait for each other.
        over = sa.select(ended.digest).where(self._is_any(ended.digest, "digests"), ended.offset <= low)
        self.forget_ended = sa.delete(self.ended).where(ended.digest.in_(over.with_for_update(skip_locked=True)))

    def _prepare_trim(self) -> None:
        """Make the statements that delete old events, and rows of former generations of the current state."""
        event, state, kept = self.events.c, self.state.c, self.current.c
        given = sa.bindparam
        self.stale = (
            sa.select(kept.generation).where(kept.generation != sa.select(state.generation).scalar_subquery()).limit(1)
        )
        # By the name of a former generation, so that a row to which a fold gives the present one stays. Rows that it
        # has locked are left for the next time, because two that delete and write in another order would be a deadlock.
        former = sa.select(kept.digest).where(kept.generation == given("stale", type_=sa.Text))
        some = former.limit(given("limit", type_=sa.Integer)).with_for_update(skip_locked=True)
        self.delete_stale = sa.delete(self.current).where(kept.digest.in_(some))
        self.lowest = sa.select(sa.func.min(event.offset))
        self.delete_events = sa.delete(self.events).where(event.offset.between(given("lowest"), given("highest")))
        self.trim_to = (
            sa.update(self.state)
            .where(state.epoch == given("of"), state.first < given("new_first"))
            .values(first=given("new_first"))
            .returning(state.first)
        )

    def _prepare_durables(self, insert: Any) -> None:  # noqa: ANN401 - the dialect's insert of the given rows
        """Make the upserts of durable subscriptions.

        ``claim`` stores claims and returns owner, name, and the position of each. ``acknowledge`` stores positions and
        returns owner and name of each claim that was not replaced.
        """
        durable, new = self.acknowledged.c, insert.excluded
        upsert = partial(insert.on_conflict_do_update, index_elements=("owner", "name"))
        # An upsert returns the row after the change. It does not change epoch and offset, so these are the position
        # that was acknowledged before.
        claimed = upsert(set_={"holder": new.holder, "used_at_ms": new.used_at_ms})
        self.claim = claimed.returning(durable.owner, durable.name, durable.epoch, durable.offset)
        later = sa.and_(durable.epoch == new.epoch, durable.offset > new.offset)
        changed = {
            "epoch": new.epoch,
            "offset": sa.case((later, durable.offset), else_=new.offset),
            "used_at_ms": new.used_at_ms,
        }
        # It compares the claim and writes, so nothing has to be locked before it.
        acknowledged = upsert(set_=changed, where=durable.holder == new.holder)
        self.acknowledge = acknowledged.returning(durable.owner, durable.name)

    def statement_for(
        self, destination: Destination | None, make: Callable[[Iterable[str]], "sa.Select[Any]"]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the statement that ``read``, ``kept`` or ``newest`` makes for a destination, and its parameters."""
        values = values_of(destination)
        return self._made(make, tuple(values)), values

    def upserts(self, statement: Any, rows: Sequence[Durable]) -> Iterable[Step]:  # noqa: ANN401 - SQLAlchemy's
        """Return the steps that store rows of ``acknowledged``, on disk, by ``claim`` or ``acknowledge``."""
        raise NotImplementedError

    def belongs_to(self, values: Iterable[str], table: sa.TableClause | None = None) -> sa.ColumnElement[bool]:
        """Return the condition for events of a destination by the names of its parameters (``values_of``)."""
        columns = (self.events if table is None else table).c
        conditions: dict[str, Callable[[], sa.ColumnElement[bool]]] = {
            "type": lambda: columns.type == sa.bindparam("type"),
            "channel": lambda: self._is_id(columns.channel_id, "channel"),
            "conversation": lambda: self._is_id(columns.conversation_id, "conversation"),
            "channels": lambda: self._is_any_id(columns.channel_id),
        }
        return sa.and_(sa.true(), *(conditions[name]() for name in values))

    def read(self, values: Iterable[str]) -> "sa.Select[Any]":
        """Return the statement for the next ``:limit`` events after the offset ``:after``.

        They have up to ``:bytes_max`` bytes of bodies. ``values``: the names of the parameters of a destination
        (``values_of``). The caller detects an expired position by the bounds.
        """
        after = sa.bindparam("after", type_=sa.BigInteger)
        wanted = sa.select(self.events).where(self.events.c.offset > after, self.belongs_to(values))
        return self._limited(wanted.limit(sa.bindparam("limit")), self.events)

    def kept(self, values: Iterable[str]) -> "sa.Select[Any]":
        """Return the statement for the next ``:limit`` events of the current state of ``:generation``.

        They are those between the offsets ``:after`` and ``:until``, with up to ``:bytes_max`` bytes of bodies.
        """
        table = self.current
        event = table.c
        after, until = (sa.bindparam(name, type_=sa.BigInteger) for name in ("after", "until"))
        generation = event.generation == sa.bindparam("generation", type_=sa.Text)
        ended = sa.exists().where(self.ended.c.digest == event.digest, self.ended.c.offset >= event.offset)
        wanted = sa.select(*(event[name] for name in COLUMNS)).where(
            event.offset > after, event.offset <= until, generation, ~ended, self.belongs_to(values, table)
        )
        return self._limited(wanted.limit(sa.bindparam("limit")), table)

    def newest(self, values: Iterable[str]) -> "sa.Select[Any]":
        """Return the statement for the newest event up to ``:until`` of ``:epoch``."""
        event, state = self.events.c, self.state.c
        # Below ``first`` there may be rows of a former epoch that no trim has deleted yet.
        retained = sa.exists().where(state.epoch == sa.bindparam("epoch"), state.first <= event.offset)
        upto = event.offset <= sa.bindparam("until", type_=sa.BigInteger)
        wanted = sa.select(self.events).where(upto, self.belongs_to(values), retained)
        return wanted.order_by(event.offset.desc()).limit(1)

    def _last_before(self, before_ms: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
        """Select the newest offset appended before a time, by bisection: times never fall as offsets grow."""
        event, state = self.events.c, self.state.c
        # The limit lets Postgres know that there is one row; it would expect so many that it would compile the query.
        only = sa.select((state.first - 1).label("low"), state.last.label("high")).order_by(state.id.desc()).limit(1)
        span = sa.select(only.subquery()).cte("span", recursive=True)
        is_older = event.appended_at_ms < before_ms
        halves = sa.select(
            sa.case((is_older, event.offset), else_=span.c.low),
            sa.case((is_older, span.c.high), else_=event.offset - 1),
        ).where(span.c.low < span.c.high, event.offset == (span.c.low + span.c.high + 1) // 2)
        return sa.select(sa.func.max(span.union_all(halves).c.low)).scalar_subquery().label("before")

    def _limited(self, wanted: "sa.Select[Any]", table: sa.TableClause) -> "sa.Select[Any]":
        """Order events; end with the one that brings the sum of the bodies to ``:bytes_max``, or leave that to us."""
        return wanted.order_by(table.c.offset)

    def _is_id(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Return the condition that a column has the id that is given as the parameter ``name``."""
        return column == sa.bindparam(name)

    def _is_any_id(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        return self._is_any(column, "channels")

    def _is_any(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Return the condition that a column has one of the values that are given as the parameter ``name``."""
        return column.in_(sa.bindparam(name, expanding=True))

    def _digest(self, object_: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.func.airy_digest(object_)


class SqliteTables(LogTables):
    """SQLite: its clock is this machine's. It returns row after row, so that a rest that is not read costs nothing."""

    def __init__(self, names: Names) -> None:
        now_ms = sa.bindparam("now_ms", callable_=lambda: int(time.time() * 1000), type_=sa.BigInteger)
        super().__init__(names, now_ms, sqlite_insert)
        unmoved = "epoch = :expected_epoch and last = :expected_last"
        # Each expression reads the values before this update. An append without a state leaves the state as it was, but
        # ``state_at`` becomes NULL, so the state does not count until an append has one again. If the generation is
        # new, or was folded up to the head before this append, it is folded up to ``fold_to`` afterwards
        # (``state_values``). Otherwise the fold is behind, and the events of this append wait for it as well.
        self.advance = sa.text(
            f"update {names.quoted(STATE)} set last = :new_last, resume_point = :point, state_at = :state_at, "  # noqa: S608 - names quoted
            "generation = coalesce(:generation, generation), marks = coalesce(:marks, marks), "
            "folded = case when :generation <> coalesce(generation, '') or folded = :expected_last "
            "then coalesce(:fold_to, folded) else folded end, appended_at_ms = max(appended_at_ms, :now_ms) "
            f"where {unmoved} and (:replaces is null or resume_point = :replaces) returning appended_at_ms"
        ).bindparams(now_ms)
        self.begin_epoch = sa.text(
            f'update {names.quoted(STATE)} set epoch = :new_epoch, "first" = :expected_last + 1, resume_point = :point '  # noqa: S608 - names quoted
            f"where {unmoved} returning :now_ms"
        ).bindparams(now_ms)
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        places = ", ".join("?" * len(COLUMNS))
        self.insert = f"insert into {names.quoted(EVENTS)} ({columns}) values ({places})"  # noqa: S608 - names quoted
        ended, added = names.quoted(ENDED), 'on conflict (digest) do update set "offset" = excluded."offset"'
        self.end = f'insert into {ended} (digest, "offset") values (?, ?) {added}'  # noqa: S608 - names quoted
        self.sweep = (
            f'insert into {ended} (digest, "offset") select digest, max("offset") from (select digest, "offset" '  # noqa: S608 - names quoted
            f'from {names.quoted(CURRENT)} where type = :type and "offset" <= :upto '
            f'union all select airy_digest(object), "offset" from {names.quoted(EVENTS)} where type = :type '
            f'and "offset" > (select folded from {names.quoted(STATE)}) and "offset" <= :upto) '
            f'where true group by digest {added} where excluded."offset" > "offset"'
        )
        given: dict[str, Any] = {name: sa.bindparam(name, type_=type_) for name, type_ in _GIVEN.items()}
        self._prepare_durables(sqlite_insert(self.acknowledged).values(given | {"used_at_ms": now_ms}))

    def upserts(self, statement: Any, rows: Sequence[Durable]) -> Iterable[Step]:  # noqa: ANN401 - SQLAlchemy's
        """See ``LogTables.upserts``."""
        return (Step(statement, dict(zip(_GIVEN, row, strict=True))) for row in rows)


class PostgresTables(LogTables):
    """Postgres: its own clock; all rows of a statement are given as arrays."""

    def __init__(self, names: Names) -> None:
        super().__init__(names, sa.literal_column(NOW_MS, sa.BigInteger), postgres_insert)
        rows = sa.func.unnest(*(sa.bindparam(name, type_=ARRAY(type_)) for name, type_ in _GIVEN.items()))
        given = rows.table_valued(*(sa.column(name, type_) for name, type_ in _GIVEN.items())).render_derived()
        insert = postgres_insert(self.acknowledged)
        self._prepare_durables(insert.from_select([*_GIVEN, "used_at_ms"], sa.select(*given.c, self._now_ms)))
        self._synchronous = _setting("synchronous_commit", "on")
        # One fold at a time: the next one must see how far this one got. What a crash undoes of it is done again, so
        # its commit does not wait for the disk.
        lock = sa.func.pg_advisory_xact_lock(
            FOLD_CLASS, sa.func.to_regclass(names.quoted(STATE)).cast(OID).cast(sa.Integer)
        )
        self.before_fold = (
            _setting("synchronous_commit", "off"),
            _setting("lock_timeout", f"{FOLD_LOCKS_S}s"),
            Step(sa.select(lock)),
        )
        # A plan that is made once would scan the whole state for a conversation with few objects in it. And before the
        # table's first statistics Postgres sorts all that is left of the state for each page, 86 instead of 2 ms with
        # 100,000 objects, although an index has it in order.
        self.before_kept = _setting("plan_cache_mode", "force_custom_plan"), _setting("enable_sort", "off")

    def upserts(self, statement: Any, rows: Sequence[Durable]) -> Iterable[Step]:  # noqa: ANN401 - SQLAlchemy's
        """See ``LogTables.upserts``. Commits are synchronous whatever the server's default is."""
        yield self._synchronous
        columns = dict(zip(_GIVEN, zip(*rows, strict=True), strict=True))
        yield Step(statement, columns)

    def _limited(self, wanted: "sa.Select[Any]", table: sa.TableClause) -> "sa.Select[Any]":
        """Let the database sum up the sizes: all rows of a result arrive in memory."""
        offset, size = table.c.offset, sa.func.length(table.c.body)
        before = (sa.func.sum(size).over(order_by=offset) - size).label("before")
        counted = wanted.order_by(offset).add_columns(before).subquery()
        bytes_max = sa.bindparam("bytes_max", type_=sa.BigInteger)
        limited = sa.select(*(counted.c[name] for name in COLUMNS)).where(counted.c.before < bytes_max)
        return limited.order_by(counted.c.offset)

    def _is_id(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """See ``LogTables._is_id``. The condition has the form of the indexes.

        An index row has room for 2704 bytes, so these indexes contain only the beginning of an id.
        """
        id_ = sa.bindparam(name, type_=sa.Text)
        return sa.and_(_beginning(column) == _beginning(id_), column == id_)

    def _is_any_id(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        ids = sa.bindparam("channels", type_=ARRAY(sa.Text))
        begins = sa.func.array(
            sa.select(_beginning(sa.func.unnest(ids).column_valued("id"))).scalar_subquery(), type_=ARRAY(sa.Text)
        )
        return sa.and_(_beginning(column) == sa.any_(begins), column == sa.any_(ids))

    def _is_any(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        return column == sa.any_(sa.bindparam(name, type_=ARRAY(column.type)))

    def _digest(self, object_: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.func.substring(sa.func.sha256(sa.func.convert_to(object_, "UTF8")), 1, DIGEST_BYTES)


def _setting(name: str, value: str) -> Step:
    """Return the step that sets a parameter of Postgres for the rest of the transaction. Its result is empty."""
    return Step(sa.select(sa.func.set_config(name, value, sa.true())), convert=lambda _rows: ())


def _beginning(id_: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    chars: sa.ColumnElement[int] = sa.literal_column(str(INDEXED_CHARS))
    return sa.func.left(id_, chars)


def log_tables(names: Names) -> PostgresTables | SqliteTables:
    """Return the tables of one database."""
    return PostgresTables(names) if names.dialect == POSTGRES else SqliteTables(names)


def values_of(destination: Destination | None) -> dict[str, Any]:
    """Return the parameters of the condition for events of a destination; None is every event."""
    match destination:
        case None | Everything():
            return {}
        case OfType(type=type_):
            return {"type": type_}
        case OfChannel(id=id_):
            return {"channel": escaped(id_)}
        case OfConversation(id=id_):
            return {"conversation": escaped(id_)}
        case Within(destination=wider, channels=channels):
            return {**values_of(wider), "channels": sorted(map(escaped, channels))}
        case _:
            assert_never(destination)


def stored(rows: Iterable[Any]) -> Iterator[StoredEvent]:
    """Yield the events of whole rows, in the order of ``COLUMNS``."""
    for offset, appended_at_ms, type_, object_, conversation_id, channel_id, body, truncated, age_ms in rows:
        texts = unescaped(object_), unescaped(conversation_id), unescaped(channel_id)
        yield StoredEvent(offset, appended_at_ms, type_, *texts, bytes(body), bool(truncated), age_ms)


NUL: Final = "\0"
MARK: Final = "\1"
_MARKED: Final = re.compile(f"{MARK}([{MARK}0])")

Text = TypeVar("Text", str, str | None)


def escaped(text: Text) -> Text:
    """Return a text as it is stored in a column."""
    if not text or (NUL not in text and MARK not in text):
        return text
    return text.replace(MARK, MARK * 2).replace(NUL, f"{MARK}0")


def unescaped(text: Text) -> Text:
    """Return the text that ``escaped`` was given."""
    if not text or MARK not in text:
        return text
    return _MARKED.sub(lambda found: MARK if found[1] == MARK else NUL, text)
