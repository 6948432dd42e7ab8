"""The triggers of a Postgres database, as SQL.

One function and one trigger for each table and event. Statement triggers with transition tables cost least for bulk
writes; on partitions, and for what a subscription of logical replication applies, only row triggers see every row. The
functions run with the rights of their owner, so that a role without rights on our schema still writes its own tables.

A column that the application renames or drops later must not make its writes fail. So a column is never named where
it must exist: ``_value`` looks it up in a sub-select over the row, and where the row has no such column the name is
found one level further out, as NULL.

Partitions that join or leave a mapped table of Postgres while a server runs, of which no trigger reports anything.

ATTACH PARTITION makes the rows of a table rows of the mapped table, and DETACH or DROP removes them, without a write to
any row. So the partitions are compared with those of the last look, and a log line names those whose rows may not have
been sent. A partition that was created as one and was filled since the last look gets such a line too: the catalogue
does not say how a partition became one, and a line too many is better than rows that are lost silently.

What a server's role needs on Postgres: to read the mapped tables, and to work in our schema. Nothing else.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import sqlalchemy as sa
import structlog
from attrs import field, frozen

from airy_trio.capture import wakeup
from airy_trio.capture.change_log import TABLE
from airy_trio.capture.mapping import Column, Kind, Table, Tables
from airy_trio.database import Names, quote_identifier, quote_text

EVENTS_OF_ROWS: Final = ("insert", "update", "delete")
EVENTS: Final = (*EVENTS_OF_ROWS, "truncate")

_TRANSITIONS = {
    "insert": "referencing new table as airy_new",
    "update": "referencing old table as airy_old new table as airy_new",
    "delete": "referencing old table as airy_old",
}
_TRUNCATED = "airy_truncated"


def statements(
    table: Table, names: Names, wanted: Collection[str], *, deletes: bool, always: bool = False
) -> Iterator[str]:
    """What puts the triggers of these names in place, whatever stood there before.

    ``always``: they fire for the writes of a replica role too.
    """
    for event, body in _bodies(table, names, deletes=deletes).items():
        name = names.trigger(table.kind, event)
        if name in wanted:
            yield _function(table, names, event, body)
            yield _create(table, names, event)
            if always:
                yield f"alter table {qualified(table)} enable always trigger {quote_identifier(name)}"


def bodies(table: Table, names: Names, *, deletes: bool) -> Mapping[str, str]:
    """The triggers' names and the text of their functions, as Postgres keeps it."""
    made = _bodies(table, names, deletes=deletes)
    return {names.trigger(table.kind, event): body for event, body in made.items()}


def _bodies(table: Table, names: Names, *, deletes: bool) -> Mapping[str, str]:
    """The functions' text for each event.

    A TRUNCATE logs a delete for each row; of messages only where their deletes are events. The table has the name
    that it has then: the application may have renamed it.
    """
    old, new = ("(select old.*)", "(select new.*)") if table.row_triggers else ("airy_old", "airy_new")
    updated = _logged(table, names, "U", new)
    made = {
        "insert": _body(names, updated),
        "update": _body(names, f"{_logged_moved(table, names, old, new)} {updated}"),
        "delete": _body(names, _logged(table, names, "D", old)),
    }
    if deletes or table.kind != "messages":
        logged = quote_text(_logged(table, names, "D", _TRUNCATED))
        truncated = f"execute replace({logged}, {quote_text(_TRUNCATED)}, tg_relid::regclass::text)"
        made["truncate"] = _body(names, truncated, condition="true")
    return made


def qualified(table: Table) -> str:
    """The table's name as it stands in SQL text."""
    return ".".join(quote_identifier(part) for part in (table.schema, table.name) if part is not None)


def _function_name(table: Table, names: Names, event: str) -> str:
    return f"{quote_identifier(names.schema)}.{quote_identifier(f'{table.kind}_{event}')}"


def _function(table: Table, names: Names, event: str, body: str) -> str:
    return (
        f"create or replace function {_function_name(table, names, event)}() returns trigger language plpgsql "
        f"security definer set search_path = pg_catalog, pg_temp as $airy_trio${body}$airy_trio$"
    )


def _create(table: Table, names: Names, event: str) -> str:
    name, on = quote_identifier(names.trigger(table.kind, event)), qualified(table)
    execute = f"execute function {_function_name(table, names, event)}()"
    if event == "truncate":
        return f"create or replace trigger {name} before truncate on {on} for each statement {execute}"
    if table.row_triggers:
        return f"create or replace trigger {name} after {event} on {on} for each row {execute}"
    transitions = _TRANSITIONS[event]
    return f"create or replace trigger {name} after {event} on {on} {transitions} for each statement {execute}"


def _body(names: Names, statement: str, condition: str = "found") -> str:
    """A statement that logs, then the wake-up, unless the statement touched no row."""
    return f" begin {statement}; {wakeup.notify(names, condition)}; return null; end "


def _logged(table: Table, names: Names, operation: str, rows: str) -> str:
    """An insert into the change log for each of ``rows``; a deletion also carries what its event needs."""
    columns = _columns(table, operation)
    values = ", ".join(_value("airy_row", column) for column in columns)
    return (
        f"{_insert(names)} select {quote_text(table.kind)}, {quote_text(operation)}, {values} "  # noqa: S608 - quoted
        f"from {_source(columns, rows, 'airy_row')}"
    )


def _logged_moved(table: Table, names: Names, old: str, new: str) -> str:
    """A statement that logs each row whose key is gone after the update; the question first, as there rarely is one."""
    columns, keys = _columns(table, "D"), _columns(table, "U")[:2]
    logged = ("key_1", "key_2", "old_1", "old_2")
    was = ", ".join(f"{_value('airy_row', column)} as {name}" for column, name in zip(columns, logged, strict=True))
    before, after = (
        f"select {', '.join(_value('airy_row', key) for key in keys)} from {_source(keys, rows, 'airy_row')}"  # noqa: S608 - names quoted
        for rows in (old, new)
    )
    gone = f"{before} except {after}"
    same = " and ".join(f"airy_gone.{name} = airy_was.{name}" for name, _ in zip(logged, table.keys, strict=False))
    return (
        f"if exists ({gone}) then {_insert(names)} select {quote_text(table.kind)}, 'D', airy_was.* "  # noqa: S608 - quoted
        f"from (select {was} from {_source(columns, old, 'airy_row')}) as airy_was "
        f"join ({gone}) as airy_gone(key_1, key_2) on {same}; end if;"
    )


def _insert(names: Names) -> str:
    return f"insert into {names.quoted(TABLE)} (kind, operation, key_1, key_2, old_1, old_2)"


def _columns(table: Table, operation: str) -> tuple[Column | None, ...]:
    """The columns of two keys, then two that are carried; None where there is no such."""
    carried = table.carried if operation == "D" else ()
    return (*(*table.keys, None)[:2], *(*carried, None, None)[:2])


def _source(columns: Sequence[Column | None], rows: str, alias: str) -> str:
    """The rows, beside one row of NULLs under every name that may be asked of them."""
    asked = dict.fromkeys(column.name for column in columns if column is not None)
    nulls = ", ".join(f"null::text as {quote_identifier(name)}" for name in asked)
    return f"{rows} as {alias} cross join (select {nulls}) as airy_none"


def _value(alias: str, column: Column | None) -> str:
    if column is None:
        return "null::text"
    return f"(select {quote_identifier(column.name)}::text from (select {alias}.*) as airy_found)"  # noqa: S608 - quoted


logger = structlog.get_logger(__name__)

_ROOT = sa.text("select cast(to_regclass(:name) as oid)")
_MEMBERS = sa.text(
    """
    with recursive member(oid, joined) as (
        select inhrelid, xmin from pg_inherits where inhparent = :root and not inhdetachpending
        union all
        select i.inhrelid, i.xmin
        from member join pg_inherits i on i.inhparent = member.oid where not i.inhdetachpending
    )
    select member.oid, cast(member.joined as text) as joined,
           format('%I.%I', n.nspname, c.relname) as name, c.relkind <> 'p' as holds_rows
    from member join pg_class c on c.oid = member.oid join pg_namespace n on n.oid = c.relnamespace
    """
)
_EMPTY = sa.text("select oid from unnest(cast(:oids as oid[])) oid where pg_relation_size(oid) = 0")


@frozen
class _Partition:
    """A partition at any depth. ``joined``: the transaction in which it became one."""

    oid: int
    joined: str
    name: str = field(eq=False)
    holds_rows: bool


class Partitions:
    """The partitions of the mapped tables at the last look. ``deletes``: whether deleted messages are events."""

    def __init__(self, *, deletes: bool) -> None:
        self._deletes = deletes
        self._known: Mapping[int, Collection[_Partition]] = {}

    def look(self, connection: sa.Connection, tables: Tables) -> None:
        """Log which partitions joined or left with rows since the last look. The first look at a table logs nothing."""
        known: dict[int, Collection[_Partition]] = {}
        for kind, table in tables.items():
            if table.row_triggers:
                root = connection.execute(_ROOT, {"name": qualified(table)}).scalar_one()
                known[root] = {_Partition(*row) for row in connection.execute(_MEMBERS, {"root": root})}
                if root in self._known:
                    self._compare(connection, kind, table, self._known[root], known[root])
        self._known = known

    def _compare(
        self,
        connection: sa.Connection,
        kind: Kind,
        table: Table,
        before: Collection[_Partition],
        now: Collection[_Partition],
    ) -> None:
        joined = [partition for partition in now if partition not in before]
        there = {partition.oid for partition in now}
        left = [partition for partition in before if partition.oid not in there]
        if not joined and not left:
            return
        oids = [partition.oid for partition in (*joined, *left)]
        empty = set(connection.execute(_EMPTY, {"oids": oids}).scalars())
        for partition in joined:
            if partition.holds_rows and partition.oid not in empty:
                key = quote_identifier(table.keys[0].name)
                logger.warning(
                    "a partition with rows has joined; rows written before that are not sent, an UPDATE sends them",
                    table=table.name,
                    partition=partition.name,
                    statement=f"update {partition.name} set {key} = {key}",  # noqa: S608 - names quoted
                )
        for partition in left:
            if partition.holds_rows and partition.oid not in empty and (self._deletes or kind != "messages"):
                logger.warning(
                    "a partition was detached or dropped; its rows are not sent as deleted",
                    table=table.name,
                    partition=partition.name,
                )


def grant_statements(role: str, tables: Tables, names: Names) -> Iterator[str]:
    """Grant it to a role. The triggers need no right: they run with those of their owner."""
    to = quote_identifier(role)
    for schema in sorted({table.schema for table in tables.values() if table.schema is not None}):
        yield f"grant usage on schema {quote_identifier(schema)} to {to}"
    for table in tables.values():
        yield f"grant select on {qualified(table)} to {to}"
    schema = quote_identifier(names.schema)
    yield f"grant usage on schema {schema} to {to}"
    yield f"grant select, insert, update, delete on all tables in schema {schema} to {to}"
