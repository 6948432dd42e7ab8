"""From rows of the change log to changed objects: the newest change of each, with the rows as they are now.

Everything is read with one connection in one transaction that sees one snapshot; the caller opens it.

Rows of the messages table as objects, by position: of these a bulk change has the most.

Knows the mapping of one table; refuses to know how its rows are asked for.

What rows say of their objects: as they are, or gone. Rows come by the mapping's columns, fields under our names.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, assert_never

import sqlalchemy as sa
from attrs import define, field, frozen

from airy_trio.capture.feed import (
    ChangedObject,
    Channel,
    ChannelGone,
    ContentForm,
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
from airy_trio.capture.mapping import FIELDS, Key, Kind, Table, Tables
from airy_trio.capture.queries import TEXT_CHARS_MAX, Queries
from airy_trio.database.queries import BoundQuery, Row, Rows

_FIELDS = tuple(field.name for field in FIELDS["messages"])


class MessageColumns:
    """Where each field of a message is found in a row as ``Queries.rows`` gives it, which ends with ``included``."""

    def __init__(self, table: Table, text_chars_max: int = 0) -> None:
        content = table.columns.get("content")
        self._text_chars_max = text_chars_max
        read = tuple(table.columns)
        constants = {name: table.constants.get(name) for name in _FIELDS if name not in table.columns}
        is_json = content is not None and content.type == "json"
        self._form: ContentForm = "json" if table.content_form == "auto" and is_json else table.content_form
        self._added = (*constants.values(), self._form, table.zone)
        names = (*read, "included", *constants, "content_form", "time_zone")
        self._message: itemgetter[Any] = itemgetter(*map(names.index, Message._fields))
        self._key, self._included = read.index("id"), len(read)
        self._translated = tuple(name for name in table.values if name in table.columns)
        self._table = table

    def objects(self, rows: Iterable[Row]) -> Mapping[Key, ChangedObject]:
        """The messages by key; what the mapping's ``where`` leaves out is gone."""
        key, included, added, chars_max = self._key, self._included, self._added, self._text_chars_max
        found: dict[Key, ChangedObject] = {}
        for row in rows:
            message = Message._make(self._message(row + added))
            if self._translated:
                message = self._with_values(message)
            if is_cut(message.content, chars_max):
                message = message._replace(content=whole_characters(message.content), content_form="text")
            found[row[key], None] = message if row[included] else _gone(message)
        return found

    def present(self, fields: Mapping[str, Any]) -> Message:
        """A message with these fields, which are under our names."""
        return Message(**fields, content_form=self._form, time_zone=self._table.zone)

    def _with_values(self, message: Message) -> Message:
        """The same with the mapping's ``values`` applied."""
        translated: dict[str, Any] = {
            name: self._table.value(name, getattr(message, name)) for name in self._translated
        }
        return message._replace(**translated)


def is_cut(value: Value, chars_max: int) -> bool:
    """Whether a text was longer than what is read of one."""
    return isinstance(value, (str, bytes)) and len(value) > chars_max


def whole_characters(value: Value) -> Value:
    """What is left of a text that may have been cut within a character."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _gone(message: Message) -> MessageGone:
    return MessageGone(id=message.id, conversation_id=message.conversation_id, channel_id=message.channel_id)


def named(table: Table, row: Row) -> dict[str, Value]:
    """A row as it was read, by its fields' names."""
    return dict(zip(table.columns, row, strict=False))


def present(table: Table, fields: Mapping[str, Any]) -> ChangedObject:
    """The object of a row that is there. Never of a metadata pair, which has several."""
    match table.kind:
        case "messages":
            return MessageColumns(table).present(fields)
        case "channels":
            return Channel(**fields)
        case "tags":
            return Tag(**fields)
        case "metadata":  # pragma: no cover - pairs are never read as single rows
            raise AssertionError(table.kind)
        case _:
            assert_never(table.kind)


def absent(kind: Kind, fields: Mapping[str, Any]) -> ChangedObject:
    """An object whose row is gone, by what its deletion carries. Never a metadata pair."""
    match kind:
        case "messages":
            return MessageGone(
                id=fields["id"], conversation_id=fields["conversation_id"], channel_id=fields["channel_id"]
            )
        case "channels":
            return ChannelGone(id=fields["id"], source=fields["source"], source_channel_id=fields["source_channel_id"])
        case "tags":
            return TagGone(id=fields["id"])
        case "metadata":  # pragma: no cover - a pair without rows is still read as a pair
            raise AssertionError(kind)
        case _:
            assert_never(kind)


def entry(fields: Mapping[str, Any]) -> MetadataEntry:
    """One entry of a metadata pair."""
    return MetadataEntry(
        key=fields["key"], value=fields["value"], value_type=fields["value_type"], updated_at=fields["updated_at"]
    )


def pair(table: Table, key: Key) -> Key:
    """Subject and identifier under our names; a subject without identifier is cut at the last colon (Airy's form)."""
    raw = dict(zip(table.key_fields, key, strict=False))
    subject = raw.get("subject")
    cut = "identifier" not in raw and table.constants.get("identifier") is None
    if cut and isinstance(subject, str) and ":" in subject:
        raw["subject"], _, raw["identifier"] = subject.rpartition(":")
    fields = table.fields(raw)
    return fields["subject"], fields["identifier"]


DELETED = "D"
COLUMNS: Final = ("kind", "operation", "key_1", "key_2", "old_1", "old_2")


class Change(NamedTuple):
    """A row of the change log; ``old`` is what a deletion carries. A tuple, for there is one for each row."""

    kind: Kind
    operation: str
    key: Key
    old: tuple[Value, Value]


_SUBJECT = itemgetter(Change._fields.index("kind"), Change._fields.index("key"))


def changes_of(rows: Iterable[Row]) -> Iterator[Change]:
    """Rows that begin with the ``COLUMNS`` of the change log, as changes."""
    return (Change(row[0], row[1], row[2:4], row[4:6]) for row in rows)


Answers = Sequence[Rows]
"""Of each question, in order."""
_OF_MESSAGES: Final = ("message", "conversation")
"""The subjects of metadata whose owner is found in the messages table."""
_NOTHING: Final = Rows()
Ask = Callable[[Answers], Rows]
Make = Callable[[Answers], Mapping[Key, ChangedObject]]


@frozen
class Reading:
    """What has to be asked for some changed objects, in one transaction and in this order; and what it then means."""

    asked: Sequence[BoundQuery]
    objects: Callable[[Answers], tuple[ChangedObject, ...]]


@define
class _Asking:
    """Questions, as they come."""

    asked: list[BoundQuery] = field(factory=list)

    def ask(self, asked: BoundQuery | None) -> Ask:
        """Ask something, or nothing; return what finds its answer among all of them."""
        if asked is None:
            return lambda _answers: _NOTHING
        place = len(self.asked)
        self.asked.append(asked)
        return lambda answers: answers[place]


class Objects:
    """Reads the changed objects of one mapping; of a content or a metadata value at most ``text_chars_max``."""

    def __init__(self, dialect: str, tables: Tables, text_chars_max: int = TEXT_CHARS_MAX) -> None:
        self._tables = tables
        self._text_chars_max = text_chars_max
        self._messages = MessageColumns(tables["messages"], text_chars_max) if "messages" in tables else None
        self._queries = {kind: Queries(dialect, table, text_chars_max) for kind, table in tables.items()}

    def read(self, connection: sa.Connection, changes: Iterable[Change]) -> tuple[ChangedObject, ...]:
        """Each changed object once, in the order of its newest change, as it is in the connection's snapshot.

        Raises ``TablesChanged`` where a table is not as it was inspected: another read, in another snapshot, is due.
        """
        reading = self.reading(changes)
        return reading.objects([asked.answer(connection) for asked in reading.asked])

    def reading(self, changes: Iterable[Change]) -> "Reading":
        """What ``read`` has to ask for some changes, in this order, for a caller that runs the queries itself."""
        newest = _newest_of_each(changes)
        by_kind: dict[Kind, list[Key]] = defaultdict(list)
        for kind, key in newest:
            by_kind[kind].append(key)
        asking = _Asking()
        kinds = [kind for kind in by_kind if kind in self._tables]
        rows = {kind: asking.ask(self._queries[kind].rows(by_kind[kind])) for kind in kinds}
        made = {kind: self._made(kind, by_kind[kind], rows[kind], asking) for kind in kinds}
        states = {kind: asking.ask(BoundQuery(self._queries[kind].state)) for kind in self._touched(by_kind)}

        def objects(answers: Answers) -> tuple[ChangedObject, ...]:
            for kind, state in states.items():
                if not self._queries[kind].is_as_inspected(state(answers).rows):
                    raise TablesChanged(self._tables[kind].name)
            found = {kind: make(answers) for kind, make in made.items()}
            for kind in kinds:
                if refused := rows[kind](answers).refused:
                    found[kind] = {**found[kind], **self._unreadable(kind, refused)}
            there = ((found[kind].get(key) or self._gone(newest[kind, key])) for kind, key in newest if kind in found)
            return tuple(changed for changed in there if changed is not None)

        return Reading(asking.asked, objects)

    def _touched(self, by_kind: Mapping[Kind, Sequence[Key]]) -> Sequence[Kind]:
        """The kinds whose tables are read for changes of these objects: messages own most metadata."""
        kinds = [kind for kind in by_kind if kind in self._tables]
        if "messages" in self._tables and "messages" not in kinds and "metadata" in kinds:
            table = self._tables["metadata"]
            if any(pair(table, key)[0] in _OF_MESSAGES for key in by_kind["metadata"]):
                kinds.append("messages")
        return kinds

    def _made(self, kind: Kind, keys: Sequence[Key], asked: Ask, asking: "_Asking") -> Make:
        """Return what makes the objects of a kind of the answers; ``asked`` finds that with their rows."""
        match kind:
            case "metadata":
                pairs = {key: pair(self._tables[kind], key) for key in keys}
                owners = self._owners(set(pairs.values()), asking)
                return lambda answers: self._metadata(pairs, asked(answers).rows, owners(answers))
            case "messages" if self._messages is not None:
                messages = self._messages
                return lambda answers: messages.objects(asked(answers).rows)
            case _:
                return lambda answers: self._single_rows(self._tables[kind], asked(answers).rows)

    def _unreadable(self, kind: Kind, refused: Mapping[Any, str]) -> Mapping[Key, ChangedObject]:
        """The objects whose rows cannot be read, by key."""
        table = self._tables[kind]
        single = len(table.keys) == 1
        keys: dict[Key, str] = {((key, None) if single else key): reason for key, reason in refused.items()}
        ours = {key: pair(table, key) if kind == "metadata" else (key[0],) for key in keys}
        return {key: Unreadable(kind=kind, key=ours[key], reason=reason) for key, reason in keys.items()}

    def _single_rows(self, table: Table, rows: Iterable[Row]) -> Mapping[Key, ChangedObject]:
        found: dict[Key, ChangedObject] = {}
        for row in rows:
            raw = named(table, row)
            fields = table.fields(raw)
            found[table.key_of(raw)] = present(table, fields) if row[-1] else absent(table.kind, fields)
        return found

    def _metadata(
        self, pairs: Mapping[Key, Key], rows: Iterable[Row], owners: Mapping[Key, Key | str]
    ) -> Mapping[Key, ChangedObject]:
        """The metadata pairs. A pair for which ``owners`` has a reason instead of an owner is unreadable."""
        table = self._tables["metadata"]
        entries: dict[Key, list[MetadataEntry]] = {key: [] for key in pairs}
        for row in rows:
            raw = named(table, row)
            found = entries.get(table.key_of(raw))
            if row[-1] and found is not None:  # a collation may match more than what was asked for
                fields = table.fields(raw)
                if is_cut(fields["value"], self._text_chars_max):
                    fields |= {"value": whole_characters(fields["value"]), "value_type": None}
                found.append(entry(fields))
        made: dict[Key, ChangedObject] = {}
        for key, (subject, identifier) in pairs.items():
            owner = owners.get((subject, identifier), (None, None))
            if isinstance(owner, str):
                made[key] = Unreadable(kind="metadata", key=(subject, identifier), reason=owner)
                continue
            made[key] = Metadata(
                subject=subject,
                identifier=identifier,
                entries=tuple(entries[key]),
                time_zone=table.zone,
                conversation_id=owner[0],
                channel_id=owner[1],
            )
        return made

    def _owners(self, pairs: Iterable[Key], asking: "_Asking") -> Callable[[Answers], Mapping[Key, Key | str]]:
        """Conversation and channel of what each metadata pair is about (wire contract, "Events").

        A text is the reason why they cannot be read.
        """
        ids: dict[str, list[str]] = defaultdict(list)
        for subject, identifier in pairs:
            if isinstance(subject, str) and isinstance(identifier, str | int):
                ids[subject].append(str(identifier))
        messages = self._queries.get("messages")
        of_messages = asking.ask(messages.owners(ids["message"]) if messages else None)
        of_conversations = asking.ask(messages.conversations(ids["conversation"]) if messages else None)

        def owners(answers: Answers) -> Mapping[Key, Key | str]:
            found: dict[Key, Key | str] = {("channel", id_): (None, id_) for id_ in ids["channel"]}
            if messages is not None:
                for id_, owner in messages.owners_of(of_messages(answers).rows).items():
                    found["message", id_] = owner
                for id_, channel_id in messages.channels_of(of_conversations(answers).rows).items():
                    found["conversation", id_] = (id_, channel_id)
                for subject, of in ("message", of_messages), ("conversation", of_conversations):
                    for id_, reason in of(answers).refused.items():
                        found[subject, id_] = f"its {subject} {reason}"
            by_text = {asked: (str(asked[0]), str(asked[1])) for asked in pairs}
            return {asked: found[text] for asked, text in by_text.items() if text in found}

        return owners

    def _gone(self, change: Change) -> ChangedObject | None:
        """What is left to say of an object without a row. None: its deletion is yet to come, in a later batch."""
        table = self._tables[change.kind]
        id_ = change.key[0]
        if not self._queries[change.kind].can_find(change.key):  # translation will name it a fault
            return present(table, dict.fromkeys((f.name for f in FIELDS[change.kind]), None) | {"id": id_})
        if change.operation != DELETED:
            return None
        carried = (f.name for f in FIELDS[change.kind] if f.carried)
        raw = {name: old for name, old in zip(carried, change.old, strict=False) if name in table.columns}
        return absent(change.kind, table.fields({"id": id_, **raw}))


def _newest_of_each(changes: Iterable[Change]) -> Mapping[tuple[Kind, Key], Change]:
    """The newest change of each object, in the order of these."""
    found = list(changes)
    newest = dict(zip(map(_SUBJECT, found), found, strict=True))
    if len(newest) < len(found):  # else it is in order as it is
        newest = {}
        for change in reversed(found):
            newest.setdefault((change.kind, change.key), change)
        newest = dict(reversed(newest.items()))
    return newest
