"""Read the current rows of changed objects: the step from rows of the change log to ``ChangedObject``.

The change log holds keys only. Of several changes of one object only the newest counts, and its rows are read as they
are now; so an event carries the present state, and fifty changes of one row cost one read. An object without a row was
deleted; its event can carry only the fields that the change log holds of deleted rows.

All queries of one batch must run in one transaction and see one snapshot, the one in which the change log was read.
Otherwise a row might already show a later change, and the same state would be sent twice. The caller opens the
transaction. It either calls ``Objects.read``, or runs the queries of a ``Reading`` itself; ``PostgresFeed`` does the
latter, to send all of them in one round trip. ``InspectedFeed`` repeats a read whose tables have changed.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple, get_args

import sqlalchemy as sa
from attrs import fields_dict

from airy_trio.capture.feed import (
    Backfill,
    Batch,
    ChangedObject,
    Channel,
    ChannelGone,
    ContentForm,
    Gone,
    Kind,
    Message,
    MessageGone,
    Metadata,
    MetadataEntry,
    TablesChanged,
    Tag,
    TagGone,
    Unreadable,
    Value,
)
from airy_trio.capture.inspection import inspect_again
from airy_trio.capture.mapping import FIELDS, Key, Table, Tables
from airy_trio.capture.queries import BoundQuery, Queries, Row, Rows, Subject
from airy_trio.database import DatabaseRefused, DedicatedConnection
from airy_trio.errors import MappingError, StartError

DELETED: Final = "D"
WRITTEN: Final = "U"
MARKS: Final = ("B", "E")
"""The operations of marks in the change log: a backfill of this kind begins, or has ended. ``key_1`` is its token.

A server of an earlier version looks for a row with this key, finds none, and logs at most one row fault.
"""
COLUMNS: Final = ("kind", "operation", "key_1", "key_2", "old_1", "old_2")
"""The columns of the change log that make a ``Change``."""

LOCK_TIMEOUT: Final = "set local lock_timeout = '500ms'"
"""For each read of several tables on Postgres. After this time the read releases all tables and begins again.

A migration of the application may alter two tables in one transaction. A read that kept one of them locked while it
waited for the other would cause a deadlock. A session that has waited for ``deadlock_timeout``, a second by default,
checks for a deadlock, and fails if it finds one. If the read had already made its check, the migration would fail.
A read that begins again first waits for one table without a limit, because it has no other table locked then. Otherwise
it would never get a lock for which sessions of the application always queue.
"""
READS_MAX: Final = 5
"""Attempts to read one batch while the application keeps altering its tables."""

UNKNOWN_KIND: Final = "which a newer version of airy-trio captures and this one cannot send; upgrade this server"

ObjectRow = Message | MetadataEntry | Channel | Tag
"""A row of a mapped table, under our field names."""
ReadRow = tuple[Key, Any, bool]
"""An object's key as stored in the database, its ``ObjectRow``, and whether the mapping's ``where`` includes it."""
_Role = tuple[Literal["rows", "state"] | Subject, Kind]
"""The purpose of a query (a subject: its owners), and the table that it reads."""
_SUBJECTS: Final[tuple[Subject, ...]] = get_args(Subject)
_NO_ROWS: Final = Rows()
_ROWS: Final[Mapping[Kind, type[ObjectRow]]] = {
    "messages": Message,
    "metadata": MetadataEntry,
    "channels": Channel,
    "tags": Tag,
}
_GONE: Final[Mapping[Kind, type[Gone]]] = {"messages": MessageGone, "channels": ChannelGone, "tags": TagGone}
_AS_TEXT: Final[Mapping[Kind, Mapping[str, Value]]] = {
    "messages": {"content_form": "text"},
    "metadata": {"value_type": None},
}
"""The fields of such a row that mark its ``unbounded`` field as text."""


class Change(NamedTuple):
    """A row of the change log. ``old``: the fields held of a deleted row. A tuple, because a bulk change has many."""

    kind: Kind
    operation: str
    key: Key
    old: tuple[Value, Value]


def changes_of(rows: Iterable[Row]) -> Iterator[Change]:
    """Return the changes in rows that begin with the change log's ``COLUMNS``, without the marks of backfills."""
    return (Change(row[0], row[1], row[2:4], row[4:6]) for row in rows if not _is_mark(row))


def backfills_of(rows: Iterable[Row]) -> tuple[Backfill, ...]:
    """Return the marks of backfills in rows that begin with the change log's ``COLUMNS``, in order."""
    begin, _ = MARKS
    return tuple(Backfill(kind=row[0], token=str(row[2]), ended=row[1] != begin) for row in rows if _is_mark(row))


def _is_mark(row: Row) -> bool:
    """Return whether it is a mark of a kind that this version knows. A mark of another kind counts as a change."""
    return row[1] in MARKS and row[0] in FIELDS


class Objects:
    """Reads the changed objects of one mapping; of a content or a metadata value at most ``text_chars_max``."""

    def __init__(self, dialect: str, tables: Tables, text_chars_max: int) -> None:
        self.tables = tables
        self.rows = {kind: ObjectRows(table, text_chars_max) for kind, table in tables.items()}
        self.queries = {kind: Queries(dialect, table, text_chars_max) for kind, table in tables.items()}

    def read(self, connection: sa.Connection, changes: Iterable[Change]) -> tuple[ChangedObject, ...]:
        """Each changed object once, in the order of its newest change, as the connection's snapshot sees it.

        Raises ``TablesChanged`` if a table is not as it was inspected: inspect it, and read in another snapshot.
        Changes of a kind without a mapped table are skipped. Raises ``StartError`` for a kind that this version does
        not know: the triggers of a newer version logged the change, and to skip it would lose it silently.
        """
        reading = Reading(self, changes)
        return reading.objects([bound.answer(connection) for bound in reading.asked])


class Reading:
    """One batch of changes: the queries for its objects, to run in this order, and the objects in their answers."""

    def __init__(self, source: Objects, changes: Iterable[Change]) -> None:
        self._tables, self._rows, self._queries = source.tables, source.rows, source.queries
        self._newest = _newest_of_each(changes)
        self._keys: dict[Kind, list[Key]] = defaultdict(list)
        for kind, key in self._newest:
            if kind in self._tables:
                self._keys[kind].append(key)
            elif kind not in FIELDS:
                raise StartError([f'database: the change log has changes of "{kind}", {UNKNOWN_KIND}'])
        self._pairs = {key: pair(self._tables["metadata"], key) for key in self._keys.get("metadata", ())}
        self._bound = self._bind()

    @property
    def asked(self) -> Sequence[BoundQuery]:
        """The queries."""
        return list(self._bound.values())

    def _bind(self) -> Mapping[_Role, BoundQuery]:
        bound: dict[_Role, BoundQuery | None]
        bound = {("rows", kind): self._queries[kind].rows(keys) for kind, keys in self._keys.items()}
        if (messages := self._queries.get("messages")) is not None:
            for subject in _SUBJECTS:
                abouts = self._pairs.values()
                ids = [str(id_) for about, id_ in abouts if about == subject and isinstance(id_, str | int)]
                bound[subject, "messages"] = messages.owners(subject, list(dict.fromkeys(ids)))
        # After the queries that read the tables: their locks keep the tables as they are (``Queries.state``).
        read = (kind for (_, kind), query in bound.items() if query is not None)
        for kind in dict.fromkeys([*self._keys, *read]):
            bound["state", kind] = BoundQuery(self._queries[kind].state)
        return {role: query for role, query in bound.items() if query is not None}

    def objects(self, answers: Sequence[Rows]) -> tuple[ChangedObject, ...]:
        """The objects of the answers to ``asked``. Raises ``TablesChanged``."""
        answered = dict(zip(self._bound, answers, strict=True))
        # Before any row is used: if a column has another type now, its values may have another form, without any error.
        for (purpose, kind), state in answered.items():
            if purpose == "state" and not self._queries[kind].is_as_inspected(state.rows):
                raise TablesChanged(self._tables[kind].name)
        by_key: dict[Kind, dict[Key, ChangedObject]] = {}
        for kind in self._keys:
            answer = answered.get(("rows", kind), _NO_ROWS)
            rows = self._rows[kind].convert(answer.rows)
            if kind == "metadata":
                by_key[kind] = self._metadata(rows, answered)
            else:
                by_key[kind] = {key: row if included else _gone(kind, row) for key, row, included in rows}
            if answer.refused:
                by_key[kind] |= self._unreadable(kind, answer.refused)
        objects = (
            by_key[kind].get(key) or self._gone(change)
            for (kind, key), change in self._newest.items()
            if kind in by_key
        )
        return tuple(changed for changed in objects if changed is not None)

    def _metadata(self, rows: Iterable[ReadRow], answered: Mapping[_Role, Rows]) -> dict[Key, ChangedObject]:
        """The metadata pairs, with conversation and channel of what they are about (wire contract, "Events")."""
        entries: dict[Key, list[Any]] = {key: [] for key in self._pairs}
        for key, entry, included in rows:
            if included and key in entries:  # a collation may match more than the wanted key
                entries[key].append(entry)
        owners: dict[Key, Key] = {}
        reasons: dict[Key, str] = {}  # why an owner cannot be read
        for subject in _SUBJECTS:
            if (answer := answered.get((subject, "messages"))) is not None:
                of_ids = self._queries["messages"].owners_of(subject, answer.rows)
                owners |= {(subject, id_): owner for id_, owner in of_ids}
                reasons |= {(subject, id_): f"its {subject} {reason}" for id_, reason in answer.refused.items()}
        by_key: dict[Key, ChangedObject] = {}
        for key, about in self._pairs.items():
            text = str(about[0]), str(about[1])
            if text in reasons:
                by_key[key] = Unreadable(kind="metadata", key=about, reason=reasons[text])
                continue
            is_channel = about[0] == "channel" and isinstance(about[1], str | int)
            conversation_id, channel_id = (None, text[1]) if is_channel else owners.get(text, (None, None))
            by_key[key] = Metadata(
                subject=about[0],
                identifier=about[1],
                entries=tuple(entries[key]),
                time_zone=self._tables["metadata"].zone,
                conversation_id=conversation_id,
                channel_id=channel_id,
            )
        return by_key

    def _unreadable(self, kind: Kind, refused: Mapping[Any, str]) -> Mapping[Key, ChangedObject]:
        """The objects whose rows the database refuses to read, by key."""
        table = self._tables[kind]
        by_key: dict[Key, ChangedObject] = {}
        for bound_key, reason in refused.items():
            key: Key = (bound_key, None) if len(table.keys) == 1 else bound_key
            ours = pair(table, key) if kind == "metadata" else key[:1]
            by_key[key] = Unreadable(kind=kind, key=ours, reason=reason)
        return by_key

    def _gone(self, change: Change) -> ChangedObject | None:
        """The object of a change for which there is no row. None: its deletion will be in a later batch."""
        kind, id_ = change.kind, change.key[0]
        if not self._queries[kind].can_find(change.key):  # an impossible key, which translation reports
            row_class: Any = _ROWS[kind]
            only_id: ChangedObject = row_class._make(id_ if name == "id" else None for name in row_class._fields)
            return only_id
        if change.operation != DELETED:
            return None
        carried = (f.name for f in FIELDS[kind] if f.carried)
        values = {"id": id_, **dict(zip(carried, change.old, strict=False))}
        # Converted like a row that was read, so that the mapping's constants and values apply to it as well.
        [(_, row, _)] = self._rows[kind].convert([(*map(values.get, self._tables[kind].columns), False)])
        return _gone(kind, row)


def _newest_of_each(changes: Iterable[Change]) -> Mapping[tuple[Kind, Key], Change]:
    """Reduce the changes to one for each object, ordered by each object's newest change.

    A deletion is kept even if it is an older one, because it has the fields that the event of a missing row needs.
    Another change may follow it: a backfill does not lock the rows whose keys it writes, so a deletion that it does not
    see may be logged before its own line.
    """
    newest: dict[tuple[Kind, Key], Change] = {}
    # Backwards: the newest change of an object determines its place. An older deletion replaces the change but keeps
    # that place. At the end the order is reversed again.
    for change in reversed(list(changes)):
        kept = newest.setdefault((change.kind, change.key), change)
        if change.operation == DELETED != kept.operation:
            newest[change.kind, change.key] = change
    return dict(reversed(newest.items()))


class ObjectRows:
    """Converts the rows of one table to ``ObjectRow``. It takes fields by position: a bulk change has many rows.

    A row is one of ``Queries.rows``: the mapped columns, and last whether ``where`` includes it.
    """

    def __init__(self, table: Table, text_chars_max: int) -> None:
        self._table = table
        self._text_chars_max = text_chars_max
        self._row_class: Any = _ROWS[table.kind]
        # ``convert`` appends the constants to each raw row. So one ``itemgetter`` takes all fields, columns and
        # constants alike.
        constants = {**table.constants, "content_form": _content_form(table), "time_zone": table.zone, "no key": None}
        self._constants = tuple(constants.values())
        places = (*table.columns, "included", *constants).index
        self._fields: itemgetter[Any] = itemgetter(*map(places, self._row_class._fields))
        self._key: itemgetter[Key] = itemgetter(*map(places, (*table.key_fields, "no key")[:2]))
        self._included = len(table.columns)
        # The keys of metadata, which are not fields of an entry, are translated by ``pair``.
        self._translated = tuple(
            name for name in table.values if name in table.columns and name in self._row_class._fields
        )
        unbounded = (self._row_class._fields.index(field.name) for field in FIELDS[table.kind] if field.unbounded)
        self._unbounded = next(unbounded, None)

    def convert(self, rows: Iterable[Row]) -> Iterator[ReadRow]:
        """Convert rows. Yield for each the key of its object, the ``ObjectRow``, and whether ``where`` includes it."""
        make, fields, key, constants = self._row_class._make, self._fields, self._key, self._constants
        included, unbounded, chars_max = self._included, self._unbounded, self._text_chars_max
        for raw in rows:
            values = raw + constants
            row = make(fields(values))
            if self._translated:
                row = row._replace(**{name: self._table.value(name, getattr(row, name)) for name in self._translated})
            text = None if unbounded is None else row[unbounded]
            if isinstance(text, (str, bytes)) and len(text) > chars_max:  # it was cut, perhaps within a character
                text = text.decode(errors="replace") if isinstance(text, bytes) else text
                row = row._replace(**{row._fields[unbounded]: text, **_AS_TEXT[self._table.kind]})
            yield key(values), row, raw[included]


def pair(table: Table, key: Key) -> Key:
    """Our subject and identifier of a metadata key.

    If the mapping has no identifier, the subject is split at its last colon, as in Airy Core's form.
    """
    raw = dict(zip(table.key_fields, key, strict=False))
    subject = raw.get("subject")
    has_both = "identifier" not in raw and table.constants.get("identifier") is None
    if has_both and isinstance(subject, str) and ":" in subject:
        raw["subject"], _, raw["identifier"] = subject.rpartition(":")
    fields = {**table.constants, **{name: table.value(name, value) for name, value in raw.items()}}
    return fields["subject"], fields["identifier"]


def _gone(kind: Kind, row: ObjectRow) -> ChangedObject:
    """An object whose row is gone or excluded. Never metadata: a pair without rows is an empty pair."""
    gone_class = _GONE[kind]
    return gone_class(**{name: getattr(row, name) for name in fields_dict(gone_class)})


def _content_form(table: Table) -> ContentForm:
    content = table.columns.get("content")
    is_json = content is not None and content.type == "json"
    return "json" if table.content_form == "auto" and is_json else table.content_form


class InspectedFeed(ABC):
    """The part of every feed that reads the tables as they are now, although the application may alter them."""

    def __init__(self, reading: DedicatedConnection, dialect: str, tables: Tables, text_chars_max: int) -> None:
        self._reading = reading
        self._dialect = dialect
        self._text_chars_max = text_chars_max
        self.use(tables)

    async def read(self, after: str, limit: int) -> Batch:
        """See ``ChangeFeed.read``. If the tables differ from their inspection, inspect them again and repeat the read.

        Raises ``DatabaseRefused`` and ``TablesChanged`` only after ``READS_MAX`` attempts, and ``MappingError`` if the
        database refused the read because a mapped table or column, or one of a ``where``, is missing.
        """
        for _ in range(READS_MAX - 1):
            is_refused = False
            try:
                return await self._read_once(after, limit)
            except TablesChanged:
                pass
            except DatabaseRefused:
                is_refused = True
            # After a refusal the connection is closed, and on Postgres the lease ends with it. The next attempt reads
            # without the lease. That is safe: if another recorder has appended meanwhile, the store rejects the append.
            # The next attempt is made even if the tables are the same: while an application replaces a table by
            # renaming two, none has the name for a moment.
            try:
                self.use(await self._reading.run(partial(inspect_again, tables=self._tables, wheres=is_refused)))
            except MappingError:
                if is_refused:
                    raise
                # Otherwise the missing table or column may be one that this read does not need.
        return await self._read_once(after, limit)

    @abstractmethod
    async def _read_once(self, after: str, limit: int) -> Batch:
        """Do the same, with the tables as inspected. Raises ``TablesChanged`` and ``DatabaseRefused``."""

    def use(self, tables: Tables) -> None:
        """Read these tables from now on."""
        self._tables = tables
        self._objects = Objects(self._dialect, tables, self._text_chars_max)
