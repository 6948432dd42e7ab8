"""From rows of the change log to changed objects: the newest change of each, with the rows as they are now.

Everything is read with one connection in one transaction that sees one snapshot; the caller opens it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from attrs import define, field, frozen

from airy_trio.changes.driver import Answer, Asked, Row
from airy_trio.changes.feed import TablesChanged
from airy_trio.changes.messages import MessageColumns, is_cut, whole_characters
from airy_trio.changes.presence import absent, entry, named, pair, present
from airy_trio.changes.queries import TEXT_CHARS_MAX, Queries
from airy_trio.changes.rows import ChangedObject, Metadata, MetadataEntry, Unreadable, Value
from airy_trio.changes.tables import FIELDS, Key, Kind, Table, Tables

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


Answers = Sequence[Answer]
"""Of each question, in order."""
_OF_MESSAGES: Final = ("message", "conversation")
"""The subjects of metadata whose owner is found in the messages table."""
_NOTHING: Final = Answer()
Ask = Callable[[Answers], Answer]
Make = Callable[[Answers], Mapping[Key, ChangedObject]]


@frozen
class Reading:
    """What has to be asked for some changed objects, in one transaction and in this order; and what it then means."""

    asked: Sequence[Asked]
    objects: Callable[[Answers], tuple[ChangedObject, ...]]


@define
class _Asking:
    """Questions, as they come."""

    asked: list[Asked] = field(factory=list)

    def ask(self, asked: Asked | None) -> Ask:
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
        states = {kind: asking.ask(Asked(self._queries[kind].state)) for kind in self._touched(by_kind)}

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
