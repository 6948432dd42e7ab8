"""Assign the columns of one table to the fields of a kind: by name, type, reference, and the values in its rows."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC
from typing import Final

from attrs import define, field, frozen

from airy_trio.capture.feed import ContentForm, Kind, Value
from airy_trio.capture.mapping import FIELDS, Scalar
from airy_trio.events.values import UnfitValueError, instant
from airy_trio.init.catalogue import FoundColumn, FoundTable, Row
from airy_trio.init.vocabulary import CODED, FAMILIES, NAMES, NOUNS, USERS, Flag, Words, singular, squashed, without_id

MILLISECONDS_MIN: Final = 10**11
"""Smaller numbers are times in seconds, which the server would read as milliseconds, of the year 1973 or earlier."""
MILLISECONDS_MAX: Final = 10**14
"""Larger numbers are times in microseconds or nanoseconds, which the server would read as milliseconds, of the year
5138 or later."""
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]*)?")
MISSING: Final[Mapping[str, str]] = {
    "conversation_id": "no column groups messages",
    "channel_id": "no column refers to a channel",
    "sent_at": "no column has a time that can be used",
    "sender_id": "no column names the sender",
    "from_contact": "no column shows whether a contact wrote it",
    "delivery_state": "no column has a state with known words",
    "source": "no column names a platform",
    "connected": "no column has this state",
    "color": "no column has a color for each row",
}
"""The reason why a field is a constant."""
_MAY_BE_NULL: Final = frozenset({"content", "sender_id", "value", "updated_at"})


@frozen(kw_only=True)
class Source:
    """Where a field comes from: a column, with its values translated, or a constant; and why.

    ``values``: those that the rows have. ``unseen``: others with a known meaning, which later rows may have.
    """

    why: str
    column: str | None = None
    constant: Scalar = ""
    values: Mapping[str, Scalar] = field(factory=dict)
    unseen: Mapping[str, Scalar] = field(factory=dict)


@define
class Columns:
    """The columns of a table and the fields that they are assigned to. ``rows``: some of the table's rows.

    ``take`` assigns the column that fits best. Each column is assigned once.
    """

    kind: Kind
    table: FoundTable
    rows: Sequence[Row]
    _sources: dict[str, Source] = field(factory=dict)

    def put(self, name: str, source: Source) -> None:
        """Assign this source to a field."""
        self._sources[name] = source

    def put_constant(self, name: str, constant: Scalar) -> None:
        """Assign a constant to a field, because no column fits."""
        self.put(name, Source(constant=constant, why=MISSING[name]))

    def take(self, name: str, otherwise: Scalar | None = None, *, always: bool = False) -> bool:
        """Assign the best column whose values are accepted; return whether a column was assigned.

        ``always``: if no column is accepted, assign the one with the best name. ``otherwise``: the constant to assign
        if there is no column.
        """
        found = self.take_coded(name) if name in CODED else self._take_named(name, always=always)
        if not found and otherwise is not None:
            self.put_constant(name, otherwise)
        return found

    def reference(self, name: str, nouns: Sequence[str]) -> FoundColumn | None:
        """Return the column that refers to one of these nouns and whose values are accepted; does not assign it."""
        found = (column for column in references(self.table, nouns) if column.name in self.free)
        return next((column for column in found if self._accepts(name, column)), None)

    def _take_named(self, name: str, *, always: bool) -> bool:
        found = [(column, why) for column, why in candidates(self.table, self.kind, name) if column.name in self.free]
        accepted = [(column, why) for column, why in found if self._accepts(name, column)]
        for column, why in accepted or (found if always else ()):
            self.put(name, Source(column=column.name, why=why))
            return True
        return False

    def take_coded(self, name: str, chosen: str | None = None) -> bool:
        """Assign a column with a closed set of values whose meanings are all known. ``chosen``: only this one."""
        for code in CODED[name]:
            for column in with_names(self.table, code.names if chosen is None else (chosen,)):
                values = self._meanings(column, code) if column.name in self.free else None
                if values is not None:
                    meanings = code.meanings if isinstance(code, Words) and not column.labels else {}
                    unseen = unseen_words(values, meanings)
                    self.put(name, Source(column=column.name, values=values, unseen=unseen, why="by name and values"))
                    return True
        return False

    @property
    def free(self) -> Sequence[str]:
        """The columns that are not assigned yet."""
        used = {source.column for source in self._sources.values()}
        return [name for name in self.table.columns if name not in used]

    @property
    def sources(self) -> Mapping[str, Source]:
        """The sources in the order of the documentation."""
        return {one.name: self._sources[one.name] for one in FIELDS[self.kind] if one.name in self._sources}

    @property
    def content_form(self) -> ContentForm:
        """How content becomes JSON: as text, unless the column is JSON or has JSON in one of the rows."""
        column = self._sources["content"].column if self.kind == "messages" else None
        if column is None or self.table.columns[column].family == "json":
            return "auto"
        is_json = any(str(row[column]).startswith(('{"', "[{")) for row in self.rows)
        return "auto" if is_json else "text"

    def _accepts(self, name: str, column: FoundColumn) -> bool:
        """Return whether the values of a column can be those of a field, as far as the rows show."""
        values = [row[column.name] for row in self.rows]
        if None in values and name not in _MAY_BE_NULL:
            return False
        is_time = name in ("sent_at", "updated_at")
        return not is_time or column.family == "time" or all(value is None or _is_time(value) for value in values)

    def _meanings(self, column: FoundColumn, code: Flag | Words) -> Mapping[str, Scalar] | None:
        """Return the translation of a column's values, empty if they need none; None if one is not known."""
        values = [row[column.name] for row in self.rows]
        if None in values:
            return None
        found = column.labels or [str(value) for value in values]
        if isinstance(code, Words):
            return translated(found, code.meanings, code.relative)
        if column.family not in ("flag", "integer", "other") or not {*found} <= {*column.bits}:
            return None
        yes, no = column.bits
        return {} if (code.yes, code.no) == (True, False) else {yes: code.yes, no: code.no}


def candidates(table: FoundTable, kind: Kind, name: str) -> Iterator[tuple[FoundColumn, str]]:
    """Yield the columns that may be a field, best first, and why. A name may begin with the noun of the table."""
    families = FAMILIES.get(name)
    columns = {squashed(column.name): column for column in table.columns.values()}
    own = singular(table.name)
    prefixes = ("", own, *(noun for noun in map(squashed, NOUNS[kind]) if own.endswith(noun)))
    for wanted in map(squashed, NAMES[kind][name]):
        for prefix in prefixes:
            column = columns.get(prefix + wanted)
            if column is None or column.name == table.key or (families is not None and column.family not in families):
                continue
            if name == "sender_id" or column.target is None:
                yield column, "by name and type"
    if name == "sender_id":
        for column in columns.values():
            if column.target is not None and singular(column.target).endswith(USERS):
                yield column, f"refers to {column.target}"


def with_names(table: FoundTable, names: Sequence[str]) -> Iterator[FoundColumn]:
    """Yield the columns with one of these names, in the order of the names."""
    columns = {squashed(column.name): column for column in table.columns.values()}
    return (columns[name] for name in map(squashed, names) if name in columns)


def references(table: FoundTable, nouns: Sequence[str]) -> Iterator[FoundColumn]:
    """Yield the columns that refer to these nouns, by their own name or by that of the table they refer to.

    Without a foreign key, ``room_id`` and ``room`` refer to a room, but only ``room_id`` may begin with more words.
    """
    for noun in map(squashed, nouns):
        for column in table.columns.values():
            if column.name == table.key or column.target == table.name or column.family in ("time", "flag", "json"):
                continue
            base = without_id(column.name)
            is_id = base != squashed(column.name) or column.target is not None
            is_target = column.target is not None and singular(column.target).endswith(noun)
            if base == noun or (is_id and base.endswith(noun)) or is_target:
                yield column


def target(column: FoundColumn) -> str:
    """Return what a column refers to, for people."""
    return column.target or without_id(column.name)


def translated(
    found: Collection[str], meanings: Mapping[str, Scalar], relative: Collection[str] = ()
) -> Mapping[str, Scalar] | None:
    """Return a translation of these values, or None if there is none, or one of them has no known meaning."""
    known: dict[str, Scalar | None] = {value: meanings.get(squashed(value)) for value in dict.fromkeys(found)}
    others = {meaning for meaning in known.values() if meaning is not None}
    for value, meaning in known.items():
        if meaning is None and squashed(value) in relative and len(others) == 1:
            known[value] = not others.copy().pop()
    result = {value: meaning for value, meaning in known.items() if meaning is not None}
    return result if result and len(result) == len(known) else None


def unseen_words(found: Collection[str], meanings: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
    """Return the meanings of the words that are not among the found ones, in lower or upper case as these are.

    The newest rows of a quiet table may all be "read", but its next one is "sent": without a translation it would be a
    row fault.
    """
    for styled in (str.lower, str.upper, str.capitalize):
        if all(word == styled(word) for word in found):
            return {styled(word): ours for word, ours in meanings.items() if word not in map(squashed, found)}
    return {}


def _is_time(value: Value) -> bool:
    if _NUMBER.fullmatch(str(value)):
        return MILLISECONDS_MIN <= float(str(value)) < MILLISECONDS_MAX
    try:
        instant(value, UTC, "sent_at")
    except UnfitValueError:
        return False
    return True
