"""The SQL that reads the application's tables: rows by key, metadata by pair, and to whom a metadata pair belongs.

Columns are read untyped, as text or epoch, and no key is cast that might not be of its column's type, so that hardly
any value can fail. The mapping's ``where`` can, and is evaluated only for rows that were asked for: ``BoundQuery``
then finds the key at fault. What may be of any length is fetched up to a limit and one character more, so that it can
be distinguished from what is whole. Knows both dialects. Independent of what a row means.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Final, Literal

import sqlalchemy as sa

from airy_trio.capture.feed import Value
from airy_trio.capture.mapping import Column, Key, Table, fits
from airy_trio.database import POSTGRES, quote_identifier, quote_text
from airy_trio.database.queries import BoundQuery, Query, Row

INCLUDED: Final = "airy_included"
TEXT_CHARS_MAX: Final = 61_440
OCTETS_A_CHARACTER_MAX: Final = 4  # in UTF-8
UNBOUNDED: Final = frozenset({"content", "value"})
"""The fields that hold what people and programs write, of any length."""
_CAST: Final = frozenset({"integer", "numeric", "uuid"})
"""The types of columns to which a text is cast, which fails for most texts."""
_NO_KEYS: Final = {"keys": "[]"}
_ZONE = sa.text("select now() at time zone cast(:zone as text)")


class Queries:
    """The statements for one table, made once from its mapping.

    Of an ``UNBOUNDED`` field longer than ``text_chars_max`` at least one character more is fetched, and on SQLite at
    most four times as much.
    """

    def __init__(self, dialect: str, table: Table, text_chars_max: int = TEXT_CHARS_MAX) -> None:
        self._postgres = dialect == POSTGRES
        self._text_chars_max = text_chars_max
        self._table = table
        names = (quote_identifier(name) for name in (table.schema, table.name) if name is not None)
        self.name = _escaped(".".join(names))
        # where may end in a comment: hence the line's end
        self._included = f"coalesce(({_escaped(table.where)}\n), {self._false})" if table.where else self._true
        self._key_columns = table.keys
        self._any_text = not any(column.type in _CAST for column in table.keys)
        selected = [self.selected(name, column) for name, column in table.columns.items()]
        selected.append(f"{self._included} as {INCLUDED}")
        found = self._joined(self._keys(self._key_columns), self._key_columns)
        self.by_key = _question(f"select {', '.join(selected)} from {found}")  # noqa: S608 - names quoted

    @property
    def _true(self) -> str:
        return "true" if self._postgres else "1"

    @property
    def _false(self) -> str:
        return "false" if self._postgres else "0"

    def rows(self, keys: Sequence[Key]) -> BoundQuery | None:
        """Ask for the rows with these keys: the fields of ``table.columns`` as read, in that order, and one thing more.

        Which is whether the mapping's ``where`` includes the row. None where there is none to ask for.
        """
        wanted = [key for key in keys if self.can_find(key)]
        return BoundQuery(self.by_key, _as_asked(wanted, self._key_columns)) if wanted else None

    def can_find(self, key: Key) -> bool:
        """Whether rows can be asked for by this key at all."""
        if self._any_text and isinstance(key[0], str) and len(self._key_columns) == 1:  # only spares what follows
            return True
        return all(map(fits, self._key_columns, key))

    def newest(self, order: Sequence[Column], limit: int, *, nulls: Literal["first", "last"]) -> Query:
        """The keys of the newest rows that the mapping includes, by these columns."""
        keys = ", ".join(self.text(column) for column in self._key_columns)
        by = ", ".join(f"t.{_escaped(quote_identifier(column.name))} desc nulls {nulls}" for column in order)
        return _question(f"select {keys} from {self.name} t where {self._included} order by {by} limit {limit}")  # noqa: S608 - names quoted

    @cached_property
    def state(self) -> Query:
        """Ask whether the table is as it was inspected, which ``is_as_inspected`` reads.

        On Postgres it must be asked after the rows, in their transaction, which holds the table's lock from then on.
        The snapshot may be older than the lock. To a snapshot from before an ALTER TABLE that rewrites the table, or
        a TRUNCATE, the table looks empty; so the file that the snapshot sees is compared with the one that is read.
        """
        if not self._postgres:
            name = _escaped(quote_text(self._table.name))
            return _question(f"select sql from sqlite_master where type = 'table' and name = {name}")  # noqa: S608 - quoted
        types = ", ".join(
            f"cast(pg_typeof(t.{_escaped(quote_identifier(column.name))}) as oid)" for column in self._typed
        )
        table = f"cast({quote_text(self.name)} as regclass)"
        stored = f"(select {table} as oid)"
        if self._table.row_triggers:
            stored = f"(select {table} as oid union select relid from pg_partition_tree({table}))"  # noqa: S608 - quoted
        return _question(
            f"select cast(array[{types}] as text), exists (select from {stored} s left join pg_class c using (oid) "  # noqa: S608 - names quoted
            "where nullif(c.relfilenode, 0) is distinct from pg_relation_filenode(s.oid)) "
            f"from (select) one left join {self.name} t on false"
        )

    def is_as_inspected(self, rows: Sequence[Row]) -> bool:
        """Whether the table still has the types for which the statements were made, and was not rewritten."""
        if not self._postgres:
            return rows == [(self._table.definition,)]
        return rows == [(f"{{{','.join(str(column.oid) for column in self._typed)}}}", False)]

    @property
    def _typed(self) -> Sequence[Column]:
        """The columns whose types matter."""
        watermark = self._table.watermark
        return (*self._table.columns.values(), *(() if watermark is None else (watermark,)))

    def try_out(self, connection: sa.Connection) -> None:
        """Run every statement for no key at all: what it raises, reading this table would raise."""
        if self._postgres:
            connection.execute(_ZONE, {"zone": self._table.time_zone})
        if self._table.where:  # without our brackets too: what closes them itself would be another condition
            bare = f"select 1 from {self.name} t where {_escaped(self._table.where)}\nlimit 0"  # noqa: S608 - quoted
            connection.execute(sa.text(bare))
        connection.execute(self.by_key.statement, _NO_KEYS)
        if self._table.watermark is not None:
            read = self.text(self._table.watermark) + (", t.xmin" if self._postgres else "")
            connection.execute(sa.text(f"select {read} from {self.name} t limit 0"))  # noqa: S608 - quoted
        if self._table.kind == "messages":
            connection.execute(self._owners.statement, _NO_KEYS)
            if "conversation_id" in self._table.columns:
                connection.execute(self._newest.statement, _NO_KEYS)

    def owners(self, ids: Sequence[str]) -> BoundQuery | None:
        """For the messages table: ask to whom these messages belong, which ``owners_of`` reads. None for no message."""
        wanted = [(id_, None) for id_ in ids if self.can_find((id_, None))]
        return BoundQuery(self._owners, _as_asked(wanted, self._key_columns)) if wanted else None

    def owners_of(self, rows: Iterable[Row]) -> Mapping[str, Key]:
        """Conversation and channel of each message id that has a row."""
        return {str(wanted): self._owner(conversation_id, channel_id) for wanted, conversation_id, channel_id in rows}

    def conversations(self, ids: Sequence[str]) -> BoundQuery | None:
        """For the messages table: ask for the newest message of these conversations, which ``channels_of`` reads."""
        column = self._table.columns.get("conversation_id")
        wanted = [(id_, None) for id_ in ids if column is not None and fits(column, id_)]
        return BoundQuery(self._newest, _as_asked(wanted, (column,))) if wanted and column else None

    def channels_of(self, rows: Iterable[Row]) -> Mapping[str, Value]:
        """The channel of each conversation that has a message."""
        return {str(wanted): self._owner(None, channel_id)[1] for wanted, channel_id, *_ in rows}

    def _owner(self, conversation_id: Value, channel_id: Value) -> Key:
        constants = self._table.constants
        return (
            constants.get("conversation_id", self._table.value("conversation_id", conversation_id)),
            constants.get("channel_id", self._table.value("channel_id", channel_id)),
        )

    @cached_property
    def _owners(self) -> Query:
        id_ = self._table.columns["id"]
        owners = (
            self.text(self._table.columns.get(name)) + f" as {name}" for name in ("conversation_id", "channel_id")
        )
        return _question(
            f"select airy_wanted.airy_1 as wanted, {', '.join(owners)} from {self._joined(self._keys((id_,)), (id_,))} "  # noqa: S608 - names quoted
            f"where {self._included_of(self._matches(id_, 1))}"
        )

    @property
    def wants_index(self) -> bool:
        """For the messages table: whether an index that begins with the conversation would help, and is missing."""
        column = self._table.columns.get("conversation_id")
        return column is not None and self._is_indexable(column) and not self._table.by_conversation

    @cached_property
    def _newest(self) -> Query:
        """The newest message of each conversation. A message without a time is none: Postgres would sort it first.

        With an index on the conversation each conversation is looked up on its own, which reads few rows. Without one
        that would read the whole table for each conversation; so it is read once for all of them together.
        """
        conversation = self._table.columns["conversation_id"]
        sent_at = self._table.columns.get("sent_at")
        time = f"t.{_escaped(quote_identifier(sent_at.name))}" if sent_at else ""
        if self._table.by_conversation and self._is_indexable(conversation):
            return _question(self._newest_of_each(conversation, time))
        return _question(self._newest_of_all(conversation, time))

    def _newest_of_each(self, conversation: Column, time: str) -> str:
        keys, matches = self._keys((conversation,)), self._matches(conversation, 1)
        found = f"from {self.name} t where {matches} and {self._included_of(matches)}"
        newest = f"select {self.text(self._table.columns.get('channel_id'))} as channel_id {found}"
        if time:
            found += f" and {time} is not null"
            newest += f" and {time} is not null order by {time} desc"
        if self._postgres:
            return (
                f"select airy_wanted.airy_1 as wanted, newest.channel_id from {keys} "  # noqa: S608 - names quoted
                f"cross join lateral ({newest} limit 1) newest"
            )
        return (
            f"select airy_wanted.airy_1 as wanted, ({newest} limit 1) as channel_id from {keys} "  # noqa: S608 - quoted
            f"where exists (select 1 {found})"
        )

    def _newest_of_all(self, conversation: Column, time: str) -> str:
        keys, channel = self._keys((conversation,)), self.text(self._table.columns.get("channel_id"))
        timed = f" and {time} is not null" if time else ""
        if self._postgres:
            matches, wanted = self._matches(conversation, 1), 'airy_wanted.airy_1 collate "C"'
            return (
                f"select distinct on ({wanted}) airy_wanted.airy_1 as wanted, {channel} as channel_id "  # noqa: S608 - names quoted
                f"from {keys} join {self.name} t on {matches} where {self._included_of(matches)}{timed} "
                f"order by {wanted}{f', {time} desc' if time else ''}"
            )
        # Of the row with the greatest time SQLite takes the other columns too.
        newest = f", max({time}) as newest_at" if time else ""
        name = f"t.{_escaped(quote_identifier(conversation.name))}"
        matches = f"{name} in (select value from json_each(:keys))"  # noqa: S608 - names quoted
        return (
            f"select airy_wanted.airy_1 as wanted, newest.* from {keys} cross join "  # noqa: S608 - names quoted
            f"(select {channel} as channel_id, {name} as conversation_id{newest} from {self.name} t "
            f"where {matches} and {self._included_of(matches)}{timed} group by {name}) newest "
            "on newest.conversation_id = airy_wanted.airy_1"
        )

    def _included_of(self, condition: str) -> str:
        """Whether ``where`` includes a row of which a condition is true.

        It is not evaluated for any other row, in whatever order the database evaluates conditions: one row for which
        it fails would make every query fail.
        """
        return (
            f"case when {condition} then {self._included} else {self._false} end" if self._table.where else self._true
        )

    def _joined(self, wanted: str, keys: tuple[Column, ...]) -> str:
        """The keys asked for, joined to the table; the keys lead, so that their index is used."""
        on = " and ".join(self._matches(column, number) for number, column in enumerate(keys, start=1))
        join = "join" if self._postgres else "cross join"
        return f"{wanted} {join} {self.name} t on {on}"

    def _keys(self, keys: tuple[Column, ...]) -> str:
        """The keys asked for, which come as JSON: an array of them costs the driver thirty times as much."""
        if len(keys) == 1:
            if self._postgres:
                return "json_array_elements_text(cast(:keys as json)) as airy_wanted(airy_1)"
            return "(select value as airy_1 from json_each(:keys)) as airy_wanted"
        if self._postgres:
            return (
                "(select value ->> 0 as airy_1, value ->> 1 as airy_2 from json_array_elements(cast(:keys as json))) "
                "as airy_wanted"
            )
        return (
            "(select json_extract(value, '$[0]') as airy_1, json_extract(value, '$[1]') as airy_2 "
            "from json_each(:keys)) as airy_wanted"
        )

    def _matches(self, column: Column, number: int) -> str:
        """The column equals the key of that number, by its index where the key can be cast without fail."""
        name, wanted = f"t.{_escaped(quote_identifier(column.name))}", f"airy_wanted.airy_{number}"
        if not self._postgres:
            return f"{name} = {wanted}"
        if self._is_indexable(column):
            return f"{name} = cast({wanted} as {column.sql_type})"
        return f"{self.text(column)} = {wanted}"

    def _is_indexable(self, column: Column) -> bool:
        """Whether a key is compared with the column itself, so that an index of the column can be used."""
        return not self._postgres or column.type == "text" or column.type in _CAST

    def selected(self, name: str, column: Column) -> str:
        """A field as it is read: text or epoch, of what may be long the beginning."""
        if name in ("sent_at", "updated_at"):
            return f"{self._epoch(column)} as {name}"
        return f"{self._beginning(column) if name in UNBOUNDED else self.text(column)} as {name}"

    def _beginning(self, column: Column) -> str:
        """A column's text up to the limit and one character; on SQLite up to four times as much.

        There the octets are counted, since of a text its functions see no more than what stands before the first NUL:
        what is not whole has more characters than the limit, or was cut within one. What is a number stays one.
        """
        text, length = self.text(column), self._text_chars_max + 1
        if self._postgres:
            return f"left({text}, {length})"
        octets = f"coalesce(substr(cast({text} as blob), 1, {OCTETS_A_CHARACTER_MAX * length}), x'')"  # of none: NULL
        return f"case typeof({text}) when 'text' then cast({octets} as text) when 'blob' then {octets} else {text} end"

    def text(self, column: Column | None) -> str:
        """A column as text on Postgres, as it is on SQLite."""
        if column is None:
            return "null"
        name = f"t.{_escaped(quote_identifier(column.name))}"
        if not self._postgres:
            return name
        if column.type == "float":
            return f"cast(cast({name} as numeric) as text)"  # no exponents
        return f"cast({name} as text)"

    def _epoch(self, column: Column) -> str:
        """Epoch milliseconds of a timestamp; of any other type its text, which may be ISO or epoch milliseconds."""
        name = f"t.{_escaped(quote_identifier(column.name))}"
        if self._postgres and column.type == "timestamp":  # or a date, which would else count as one with time zone
            name = f"(cast({name} as timestamp) at time zone {_escaped(quote_text(self._table.time_zone))})"
        elif not self._postgres or column.type != "timestamptz":
            return self.text(column)
        return f"cast(floor(extract(epoch from {name}) * 1000) as text)"


def _as_asked(keys: Sequence[Key], columns: Sequence[Column]) -> Sequence[object]:
    return [key[0] for key in keys] if len(columns) == 1 else keys


def _question(sql: str) -> Query:
    return Query(sa.text(sql))


def _escaped(sql: str) -> str:
    return sql.replace(":", "\\:")
