"""The SQL that reads the application's tables: rows by key, and the owners of metadata.

One impossible value must not fail a whole batch. Therefore columns are read as text or epoch, not converted by the
driver, and a key is cast only to a type to which it can be cast (``_fits``). Two things can still fail: an
unusual value, such as a date too large for a timestamp, and the mapping's ``where``, which is the operator's SQL.
``where`` is evaluated only for the requested rows, and ``BoundQuery`` finds the keys that fail.

Fields that may be of any length are fetched up to a limit and one character more, which distinguishes a cut value from
a whole one. Independent of the meaning of a row (``objects``).

Queries run on the raw driver, which returns plain tuples: SQLAlchemy's rows would double the cost of a bulk change.
"""

import json
import math
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal

import sqlalchemy as sa
from attrs import define, field, frozen

from airy_trio.capture.feed import Value
from airy_trio.capture.mapping import FIELDS, Column, Key, Table
from airy_trio.database import POSTGRES, escape_colons, is_refusal, quote_identifier, quote_text

Row = tuple[Any, ...]
Subject = Literal["message", "conversation"]
"""What metadata may be about, and has an owner that is read from the messages table."""

TEXT_CHARS_MAX: Final = 61_440
OCTETS_A_CHARACTER_MAX: Final = 4  # in UTF-8
LENGTH_MAX: Final = 2**31 - 1
"""Neither database has a longer text. With a larger number Postgres has no ``left``, and SQLite's ``substr`` returns
nothing."""
_CAST: Final = frozenset({"integer", "numeric", "uuid"})
"""The types of key columns to which a key is cast. Most texts cannot be cast to them."""
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# No integer type has more than 19 digits, and ``int`` raises an error for more than 4300.
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_INTEGER_BITS: Final = {"smallint": 16, "integer": 32, "bigint": 64}
_NUMERIC: Final = re.compile(r"[+-]?[0-9]{1,1000}(\.[0-9]{1,1000})?")
_NO_KEYS: Final = {"keys": "[]"}
_ZONE: Final = sa.text("select now() at time zone cast(:zone as text)")
_NOT_UTF8: Final = "could not decode to utf-8"


@define(eq=False)
class Query:
    """A statement with named parameters, which is compiled once."""

    statement: sa.TextClause
    _compiled: sa.Compiled | None = field(default=None, init=False)

    def rows(self, connection: sa.Connection, arguments: Mapping[str, object]) -> list[Row]:
        """Return all rows, in a transaction that the caller has begun. Raises the driver's errors."""
        if self._compiled is None:
            self._compiled = self.statement.compile(dialect=connection.dialect)
        sql = str(self._compiled)
        driver: Any = connection.connection.driver_connection
        if connection.dialect.name == POSTGRES:
            return _fetch(driver, sql, arguments)
        names: tuple[str, ...] = self._compiled.positiontup or ()  # type: ignore[attr-defined]
        return _fetch_text(driver, sql, tuple(arguments[name] for name in names))


@frozen
class Rows:
    """The rows of a query. ``refused``: each key for which the database refused to answer, and the reason."""

    rows: Sequence[Row] = ()
    refused: Mapping[Any, str] = field(factory=dict)


@frozen
class BoundQuery:
    """A query and its keys, which become an argument only when the query runs."""

    query: Query
    keys: Sequence[object] = ()

    @property
    def arguments(self) -> Mapping[str, object]:
        """The keys as JSON, under the name ``keys``."""
        return {"keys": json.dumps(self.keys, ensure_ascii=False)}  # a database without encoding refuses an escape

    def answer(self, connection: sa.Connection) -> Rows:
        """Return the rows of all keys, in a transaction that the caller has begun. Raises the driver's errors.

        One row can make the database refuse the whole query: a date too large for a cast, a value for which the
        mapping's ``where`` fails. So a refused query runs again for each half of its keys, down to single keys, in the
        same snapshot: on Postgres a savepoint keeps the transaction. If a query is refused even without keys, the query
        itself is wrong, and its error is raised.
        """
        postgres = connection.dialect.name == POSTGRES
        # A savepoint outlives a rollback to it, so one is enough for all parts.
        if postgres and self.keys:
            connection.exec_driver_sql("savepoint airy_query")
        rows: list[Row] = []
        refused: dict[object, str] = {}
        parts = [self]
        while parts:
            part = parts.pop()
            try:
                rows += part.query.rows(connection, part.arguments)
            except Exception as error:
                if not part.keys or not is_refusal(error):
                    raise
                if postgres:
                    connection.exec_driver_sql("rollback to savepoint airy_query")
                if part is self:
                    self.query.rows(connection, _NO_KEYS)
                if len(part.keys) == 1:
                    refused[part.keys[0]] = refusal_reason(error)
                else:
                    parts += part.halves
        return Rows(rows, refused)

    @property
    def halves(self) -> tuple["BoundQuery", "BoundQuery"]:
        """The query with the second half of the keys, and the query with the first half."""
        half = len(self.keys) // 2
        return BoundQuery(self.query, self.keys[half:]), BoundQuery(self.query, self.keys[:half])


def refusal_reason(error: Exception) -> str:
    """Return why a single key was refused; never the driver's message, which quotes the row's values."""
    code = getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", "")
    return (
        f"cannot be read: the database refuses one of its values, or where fails on it ({type(error).__name__} {code})"
    )


def _fetch(driver: Any, sql: str, arguments: object) -> list[Row]:  # noqa: ANN401 - either driver's connection
    cursor = driver.cursor()
    try:
        rows: list[Row] = cursor.execute(sql, arguments).fetchall()
    finally:
        cursor.close()
    return rows


def _fetch_text(driver: sqlite3.Connection, sql: str, arguments: tuple[object, ...]) -> list[Row]:
    """Do the same on SQLite, where text is nearly always UTF-8.

    A lenient connection (``sqlite_engine``) calls a Python function for each text. So the query runs strictly first,
    and leniently only if some text is not UTF-8. Within one transaction both runs see the same rows.
    """
    lenient = driver.text_factory
    driver.text_factory = str
    try:
        return _fetch(driver, sql, arguments)
    except sqlite3.OperationalError as error:
        if lenient is str or _NOT_UTF8 not in str(error).lower():
            raise
    finally:
        driver.text_factory = lenient
    return _fetch(driver, sql, arguments)


class Queries:
    """The statements for one table, made once from its mapping. In all of them the table is called ``t``.

    Of an unbounded field longer than ``text_chars_max`` at least one character more is fetched, and on SQLite at
    most four times as many.
    """

    def __init__(self, dialect: str, table: Table, text_chars_max: int = TEXT_CHARS_MAX) -> None:
        self._postgres = dialect == POSTGRES
        self._text_chars_max = text_chars_max
        self._table = table
        self.name = escape_colons(table.quoted)
        self._true, self._false = ("true", "false") if self._postgres else ("1", "0")
        # ``where`` may end in a comment, hence the line break.
        self._included = f"coalesce(({escape_colons(table.where)}\n), {self._false})" if table.where else self._true
        self._fields = {f.name: f for f in FIELDS[table.kind]}
        selected = [self.selected(name, column) for name, column in table.columns.items()]
        self._by_key = _query(
            f"select {', '.join(selected)}, {self._included} as airy_included "  # noqa: S608 - names quoted
            f"from {self._joined(table.keys)}"
        )

    def rows(self, keys: Sequence[Key]) -> BoundQuery | None:
        """Bind the query for the rows with these keys; None if no row can have any of them.

        A row consists of the fields of ``table.columns``, in that order, and whether the mapping's ``where`` includes
        the row.
        """
        wanted = [key for key in keys if self.can_find(key)]
        is_single = len(self._table.keys) == 1
        return BoundQuery(self._by_key, [key[0] for key in wanted] if is_single else wanted) if wanted else None

    def can_find(self, key: Key) -> bool:
        """Whether a row can have this key at all."""
        return all(map(_fits, self._table.keys, key))

    def newest(self, order: Sequence[Column], limit: int, *, nulls: Literal["first", "last"]) -> Query:
        """The query for the keys of the newest rows that the mapping includes, ordered by these columns."""
        keys = ", ".join(self.text(column) for column in self._table.keys)
        by = ", ".join(f"{_name(column)} desc nulls {nulls}" for column in order)
        return _query(f"select {keys} from {self.name} t where {self._included} order by {by} limit {limit}")  # noqa: S608 - names quoted

    @cached_property
    def state(self) -> Query:
        """The query for the state of the table, which ``is_as_inspected`` evaluates.

        On Postgres it must run after the queries for rows and in their transaction, which holds a lock on the table
        from then on. The snapshot may be older than that lock, and a snapshot from before a TRUNCATE, or before an
        ALTER TABLE that rewrites the table, sees an empty table. Therefore it compares the file that the snapshot sees
        with the file that is read.
        """
        if not self._postgres:
            name = escape_colons(quote_text(self._table.name))
            return _query(f"select sql from sqlite_master where type = 'table' and name = {name}")  # noqa: S608 - quoted
        # ``pg_class`` is read in the snapshot, while ``pg_relation_filenode`` returns the present file. A partitioned
        # table has none: that is 0 in the former and NULL in the latter. The join gives a row of NULLs, because
        # ``pg_typeof`` needs a row and the table may be empty.
        types = ", ".join(f"cast(pg_typeof({_name(column)}) as oid)" for column in self._typed)
        table = f"cast({quote_text(self.name)} as regclass)"
        stored = f"(select {table} as oid)"
        if self._table.row_triggers:
            stored = f"(select {table} as oid union select relid from pg_partition_tree({table}))"  # noqa: S608 - quoted
        return _query(
            f"select cast(array[{types}] as text), exists (select from {stored} s left join pg_class c using (oid) "  # noqa: S608 - names quoted
            "where nullif(c.relfilenode, 0) is distinct from pg_relation_filenode(s.oid)) "
            f"from (select) one left join {self.name} t on false"
        )

    def is_as_inspected(self, state: Sequence[Row]) -> bool:
        """Whether the table has the types for which the statements were made, and was not rewritten."""
        if not self._postgres:
            return state == [(self._table.definition,)]
        return state == [(f"{{{','.join(str(column.oid) for column in self._typed)}}}", False)]

    @property
    def _typed(self) -> Sequence[Column]:
        """The columns whose types matter."""
        watermark = self._table.watermark
        return (*self._table.columns.values(), *(() if watermark is None else (watermark,)))

    def try_out(self, connection: sa.Connection) -> None:
        """Run every statement for no key. Raises what reading this table would raise."""
        if self._postgres:
            connection.execute(_ZONE, {"zone": self._table.time_zone})
        if self._table.where:
            # Without our parentheses too: a ``where`` that closes them itself would be another condition.
            bare = f"select 1 from {self.name} t where {escape_colons(self._table.where)}\nlimit 0"  # noqa: S608 - quoted
            connection.execute(sa.text(bare))
        connection.execute(self._by_key.statement, _NO_KEYS)
        if self._table.watermark is not None:  # ``polling`` also reads xmin, which needs a right of its own
            polled = self.text(self._table.watermark) + (", t.xmin" if self._postgres else "")
            connection.execute(sa.text(f"select {polled} from {self.name} t limit 0"))  # noqa: S608 - names quoted
        if self._table.kind == "messages":
            connection.execute(self._owners.statement, _NO_KEYS)
            if "conversation_id" in self._table.columns:
                connection.execute(self._newest.statement, _NO_KEYS)

    def owners(self, subject: Subject, ids: Sequence[str]) -> BoundQuery | None:
        """For the messages table: bind the query for the owners of these objects; None if there can be no such object.

        The owner of a conversation is that of its newest message. ``owners_of`` evaluates the rows.
        """
        column = self._table.columns.get("id" if subject == "message" else "conversation_id")
        wanted = [id_ for id_ in ids if column is not None and _fits(column, id_)]
        if not wanted:
            return None
        return BoundQuery(self._owners if subject == "message" else self._newest, wanted)

    def owners_of(self, subject: Subject, rows: Iterable[Row]) -> Iterator[tuple[str, Key]]:
        """Yield the id of each object that has a row, with its conversation and channel."""
        constants, value = self._table.constants, self._table.value
        for wanted, channel_id, *conversation_id in rows:
            conversation: Value = str(wanted)
            if subject == "message":
                conversation = constants.get("conversation_id", value("conversation_id", conversation_id[0]))
            yield str(wanted), (conversation, constants.get("channel_id", value("channel_id", channel_id)))

    @cached_property
    def _owners(self) -> Query:
        id_ = self._table.columns["id"]
        conversation, channel = (self.text(self._table.columns.get(name)) for name in ("conversation_id", "channel_id"))
        return _query(
            f"select airy_wanted.airy_1 as wanted, {channel} as channel_id, {conversation} as conversation_id "  # noqa: S608 - names quoted
            f"from {self._joined((id_,))} where {self._included_of(self._matches(id_, 1))}"
        )

    @property
    def wants_index(self) -> bool:
        """For the messages table: whether an index that begins with the conversation would help, and is missing."""
        column = self._table.columns.get("conversation_id")
        return column is not None and self._is_indexable(column) and not self._table.by_conversation

    @cached_property
    def _newest(self) -> Query:
        """The channel of the newest message of each conversation.

        A message without a time does not count, because Postgres would sort it first. With an index on the
        conversation, each conversation is looked up, which reads few rows. Without one, that would read the whole table
        for each conversation, so the table is read once for all of them. With an index, that single read would take
        45 ms instead of 0.4 on Postgres, and 2 ms instead of 0.01 on SQLite, for a conversation with 10,000 of 110,000
        messages; for 2000 conversations with 50 each, 210 ms instead of 21, and 95 ms instead of 5.
        """
        conversation = self._table.columns["conversation_id"]
        sent_at = self._table.columns.get("sent_at")
        time = _name(sent_at) if sent_at else ""
        if self._table.by_conversation and self._is_indexable(conversation):
            return _query(self._newest_of_each(conversation, time))
        return _query(self._newest_of_all(conversation, time))

    def _newest_of_each(self, conversation: Column, time: str) -> str:
        keys, matches = self._wanted(1), self._matches(conversation, 1)
        messages = f"from {self.name} t where {matches} and {self._included_of(matches)}"
        messages += f" and {time} is not null" if time else ""
        newest = f"select {self.text(self._table.columns.get('channel_id'))} as channel_id {messages}"
        newest += f" order by {time} desc limit 1" if time else " limit 1"
        if self._postgres:
            return (
                f"select airy_wanted.airy_1 as wanted, newest.channel_id from {keys} "  # noqa: S608 - names quoted
                f"cross join lateral ({newest}) newest"
            )
        # A conversation without a message gives no row. The inner query alone returns NULL for it, as for one whose
        # newest message has no channel.
        return (
            f"select airy_wanted.airy_1 as wanted, ({newest}) as channel_id from {keys} "  # noqa: S608 - names quoted
            f"where exists (select 1 {messages})"
        )

    def _newest_of_all(self, conversation: Column, time: str) -> str:
        keys, channel = self._wanted(1), self.text(self._table.columns.get("channel_id"))
        timed = f" and {time} is not null" if time else ""
        if self._postgres:
            # ``distinct on`` needs some order. In this one Postgres compares octets, which costs less than the order of
            # a language.
            matches, wanted = self._matches(conversation, 1), 'airy_wanted.airy_1 collate "C"'
            return (
                f"select distinct on ({wanted}) airy_wanted.airy_1 as wanted, {channel} as channel_id "  # noqa: S608 - names quoted
                f"from {keys} join {self.name} t on {matches} where {self._included_of(matches)}{timed} "
                f"order by {wanted}{f', {time} desc' if time else ''}"
            )
        # With max() in the select list, SQLite takes the other columns from the row that has the maximum.
        newest = f", max({time}) as newest_at" if time else ""
        name = _name(conversation)
        matches = f"{name} in (select value from json_each(:keys))"  # noqa: S608 - names quoted
        return (
            f"select airy_wanted.airy_1 as wanted, newest.* from {keys} cross join "  # noqa: S608 - names quoted
            f"(select {channel} as channel_id, {name} as conversation_id{newest} from {self.name} t "
            f"where {matches} and {self._included_of(matches)}{timed} group by {name}) newest "
            "on newest.conversation_id = airy_wanted.airy_1"
        )

    def _included_of(self, condition: str) -> str:
        """Whether ``where`` includes a row for which a condition is true.

        The database may evaluate conditions in any order, and a ``where`` that fails for one row of the table would
        make every query fail. Inside ``case`` it is not evaluated for other rows.
        """
        if not self._table.where:
            return self._true
        return f"case when {condition} then {self._included} else {self._false} end"

    def _joined(self, keys: Sequence[Column]) -> str:
        """The wanted keys, joined to the table; the keys come first, so that the table's index is used."""
        on = " and ".join(self._matches(column, number) for number, column in enumerate(keys, start=1))
        # SQLite does not change the order of the tables in a CROSS JOIN.
        join = "join" if self._postgres else "cross join"
        return f"{self._wanted(len(keys))} {join} {self.name} t on {on}"

    def _wanted(self, columns: int) -> str:
        """The wanted keys as a table. They come as JSON, because an array costs the driver thirty times as much."""
        match self._postgres, columns:
            case True, 1:
                return "json_array_elements_text(cast(:keys as json)) as airy_wanted(airy_1)"
            case True, _:
                return (
                    "(select value ->> 0 as airy_1, value ->> 1 as airy_2 "
                    "from json_array_elements(cast(:keys as json))) as airy_wanted"
                )
            case _, 1:
                return "(select value as airy_1 from json_each(:keys)) as airy_wanted"
            case _:
                return (
                    "(select json_extract(value, '$[0]') as airy_1, json_extract(value, '$[1]') as airy_2 "
                    "from json_each(:keys)) as airy_wanted"
                )

    def _matches(self, column: Column, number: int) -> str:
        """The condition that a column equals the wanted key of that number."""
        wanted = f"airy_wanted.airy_{number}"
        if not self._postgres:
            return f"{_name(column)} = {wanted}"
        if self._is_indexable(column):
            return f"{_name(column)} = cast({wanted} as {column.sql_type})"
        return f"{self.text(column)} = {wanted}"

    def _is_indexable(self, column: Column) -> bool:
        """Whether a key is compared with the column itself, so that an index on the column can be used."""
        return not self._postgres or column.type == "text" or column.type in _CAST

    def selected(self, name: str, column: Column) -> str:
        """A field as it is read: as text or epoch, and cut if it may be long."""
        ours = self._fields[name]
        if ours.time:
            return f"{self._epoch(column)} as {name}"
        return f"{self._beginning(column) if ours.unbounded else self.text(column)} as {name}"

    def _beginning(self, column: Column) -> str:
        """A column's text up to the limit and one character; on SQLite up to four times as much.

        SQLite's text functions see a text only up to its first NUL, so octets are counted there. A cut value then has
        more characters than the limit, or was cut within one. Numbers remain numbers.
        """
        text, length = self.text(column), self._text_chars_max + 1
        if self._postgres:
            return f"left({text}, {min(length, LENGTH_MAX)})"
        # substr gives NULL for an empty value, hence coalesce.
        octets_max = min(OCTETS_A_CHARACTER_MAX * length, LENGTH_MAX)
        octets = f"coalesce(substr(cast({text} as blob), 1, {octets_max}), x'')"
        return f"case typeof({text}) when 'text' then cast({octets} as text) when 'blob' then {octets} else {text} end"

    def text(self, column: Column | None) -> str:
        """A column as text on Postgres, unchanged on SQLite."""
        if column is None:
            return "null"
        if not self._postgres:
            return _name(column)
        if column.type == "float" and column not in self._table.logged_columns("D"):  # a trigger logs it as plain text
            return f"cast(cast({_name(column)} as numeric) as text)"  # numeric has no exponents
        return f"cast({_name(column)} as text)"

    def _epoch(self, column: Column) -> str:
        """Epoch milliseconds of a timestamp; the text of any other column, which may be ISO or epoch milliseconds."""
        name = _name(column)
        if column.type == "timestamp":  # or a date, which without the cast would become a timestamptz
            name = f"(cast({name} as timestamp) at time zone {escape_colons(quote_text(self._table.time_zone))})"
        elif column.type != "timestamptz":
            return self.text(column)
        return f"cast(floor(extract(epoch from {name}) * 1000) as text)"


def _query(sql: str) -> Query:
    return Query(sa.text(sql))


def _name(column: Column) -> str:
    return f"t.{escape_colons(quote_identifier(column.name))}"


def _fits(column: Column, key: Value) -> bool:
    """Return whether the database can cast a key to the column's type. A failing cast would fail the whole batch."""
    if key is None or isinstance(key, bytes) or (isinstance(key, float) and not math.isfinite(key)):
        return False
    match column.type:
        case "uuid":
            return _UUID.fullmatch(str(key)) is not None
        case "integer":
            limit = 2 ** (_INTEGER_BITS[column.sql_type] - 1)
            return _INTEGER.fullmatch(str(key)) is not None and -limit <= int(key) < limit
        case "numeric":
            return _NUMERIC.fullmatch(str(key)) is not None
        case _:
            return True
