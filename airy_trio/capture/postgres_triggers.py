"""The triggers of a Postgres database, as SQL.

One function and one trigger for each table and event. Statement triggers with transition tables cost least for bulk
writes; on partitions, and for what a subscription of logical replication applies, only row triggers see every row. The
functions run with the rights of their owner, so that a role without rights on our schema still writes its own tables.

A column that the application renames or drops later must not make its writes fail. So a column is never named where
it must exist: ``_value`` looks it up in a sub-select over the row, and where the row has no such column the name is
found one level further out, as NULL.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from airy_trio.changes import doorbell
from airy_trio.changes.changelog import TABLE
from airy_trio.changes.tables import Column, Table
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
    """A statement that logs, then the bell: for a statement that touched no row nobody is woken."""
    return f" begin {statement}; {doorbell.ring(names, condition)}; return null; end "


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
