"""The triggers of a Postgres database, as SQL.

One function and one trigger for each table and event. Statement triggers with transition tables cost least for bulk
writes; on partitions only row triggers see every row (findings on the data layer, 2). The functions run with the
rights of their owner, so that a role without rights on our schema still writes its own tables.

A column that the application renames or drops later must not make its writes fail. So a column is never named where
it must exist: ``_value`` looks it up in a sub-select over the row, and where the row has no such column the name is
found one level further out, as NULL.
"""

from collections.abc import Iterator, Mapping, Sequence

from airy_trio.changes.changelog import TABLE
from airy_trio.changes.tables import Column, Table
from airy_trio.database import Names, quote_identifier, quote_text

_TRANSITIONS = {
    "insert": "referencing new table as airy_new",
    "update": "referencing old table as airy_old new table as airy_new",
    "delete": "referencing old table as airy_old",
    "truncate": "",
}


def statements(table: Table, names: Names, *, deletes: bool) -> Iterator[str]:
    """What puts the triggers of one table in place, whatever stood there before."""
    on = qualified(table)
    wanted = bodies(table, names, deletes=deletes)
    for event in _TRANSITIONS:
        name = _trigger(names, event)
        yield f"drop trigger if exists {quote_identifier(name)} on {on}"
        if name in wanted:
            yield _function(table, names, event, wanted[name])
            yield _create(table, names, event)


def bodies(table: Table, names: Names, *, deletes: bool) -> Mapping[str, str]:
    """The triggers' names and the text of their functions, as Postgres keeps it.

    A TRUNCATE logs a delete for each row; of messages only where their deletes are events.
    """
    made = {
        _trigger(names, "insert"): _rows(table, names, "insert"),
        _trigger(names, "update"): _rows(table, names, "update"),
        _trigger(names, "delete"): _rows(table, names, "delete"),
    }
    if deletes or table.kind != "messages":
        made[_trigger(names, "truncate")] = _body(_logged(table, names, "D", qualified(table)))
    return made


def qualified(table: Table) -> str:
    """The table's name as it stands in SQL text."""
    return ".".join(quote_identifier(part) for part in (table.schema, table.name) if part is not None)


def _trigger(names: Names, event: str) -> str:
    return f"{names.schema}_{event}"


def _function_name(table: Table, names: Names, event: str) -> str:
    return f"{quote_identifier(names.schema)}.{quote_identifier(f'{table.kind}_{event}')}"


def _function(table: Table, names: Names, event: str, body: str) -> str:
    return (
        f"create or replace function {_function_name(table, names, event)}() returns trigger language plpgsql "
        f"security definer set search_path = pg_catalog, pg_temp as $airy_trio${body}$airy_trio$"
    )


def _create(table: Table, names: Names, event: str) -> str:
    name, on = quote_identifier(_trigger(names, event)), qualified(table)
    execute = f"execute function {_function_name(table, names, event)}()"
    if event == "truncate":
        return f"create trigger {name} before truncate on {on} for each statement {execute}"
    if table.row_triggers:
        return f"create trigger {name} after {event} on {on} for each row {execute}"
    return f"create trigger {name} after {event} on {on} {_TRANSITIONS[event]} for each statement {execute}"


def _rows(table: Table, names: Names, event: str) -> str:
    """The body for one event: keys from the transition tables, or from the row of a row trigger."""
    old, new = ("(select old.*)", "(select new.*)") if table.row_triggers else ("airy_old", "airy_new")
    updated = _logged(table, names, "U", new)
    match event:
        case "insert":
            return _body(updated)
        case "delete":
            return _body(_logged(table, names, "D", old))
        case _:
            gone = f"select {_keys(table, 'airy_before')} from {_source(table, old, 'airy_before')}"  # noqa: S608
            kept = f"select {_keys(table, 'airy_after')} from {_source(table, new, 'airy_after')}"  # noqa: S608
            moved = f"({gone} except {kept})"
            return _body(f"if exists {moved} then {_logged(table, names, 'D', old, moved)}; end if; {updated}")


def _body(statement: str) -> str:
    return f" begin {statement}; return null; end "


def _logged(table: Table, names: Names, operation: str, rows: str, only: str = "") -> str:
    """An insert into the change log for each of ``rows``, of those whose keys are among ``only`` if that is given."""
    carried = table.carried if operation == "D" else ()
    values = [_value("airy_row", column) for column in (*_padded(table.keys), *_padded(carried))]
    keys = ", ".join(values[:2])
    return (
        f"insert into {names.quoted(TABLE)} (kind, operation, key_1, key_2, old_1, old_2) "  # noqa: S608 - names quoted
        f"select {quote_text(table.kind)}, {quote_text(operation)}, {', '.join(values)} "
        f"from {_source(table, rows, 'airy_row')}"
        + (f" where exists (select {keys} intersect {only})" if only else "")
    )


def _source(table: Table, rows: str, alias: str) -> str:
    """The rows, beside one row of NULLs under every name that may be asked of them."""
    asked = dict.fromkeys(column.name for column in (*table.keys, *table.carried) if column is not None)
    nulls = ", ".join(f"null::text as {quote_identifier(name)}" for name in asked)
    return f"{rows} as {alias} cross join (select {nulls}) as airy_none"


def _keys(table: Table, alias: str) -> str:
    return ", ".join(_value(alias, column) for column in _padded(table.keys))


def _value(alias: str, column: Column | None) -> str:
    if column is None:
        return "null::text"
    return f"(select {quote_identifier(column.name)}::text from (select {alias}.*) as airy_found)"


def _padded(columns: Sequence[Column | None]) -> tuple[Column | None, ...]:
    return (*columns, None, None)[:2]
