"""The triggers of an SQLite file, as SQL.

``INSERT OR REPLACE`` (and ``UPDATE OR REPLACE``) deletes the rows that share a unique value with the new one without
firing a delete trigger. Where such a row may be another object, a trigger before the write logs its key. It cannot
know whether the row will really go; a row that stays is merely read once more.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from airy_trio.changes.changelog import TABLE
from airy_trio.changes.tables import Column, Table
from airy_trio.database import Names, quote_identifier, quote_text

EVENTS: Final = ("insert", "update", "delete", "before_insert", "before_update")

_NOW_MS = "cast((julianday('now') - 2440587.5) * 86400000 as integer)"
_TOKEN = "lower(hex(randomblob(8)))"  # noqa: S105 - a mark of a row, not a secret


def triggers(table: Table, names: Names) -> Mapping[str, str]:
    """The triggers of one table by name, as SQLite keeps them."""
    updated = _logged(table, names, "U", "new")
    deleted = _logged(table, names, "D", "old")
    bodies = {
        ("after", "insert"): f"{updated};",
        ("after", "update"): f"{deleted} where {_differ(table, 'old', 'new')}; {updated};",
        ("after", "delete"): f"{deleted};",
        ("before", "insert"): "".join(_replaced(table, names, "new")),
        ("before", "update"): "".join(_replaced(table, names, "old")),
    }
    return {
        (name := names.trigger(table.kind, event if when == "after" else f"{when}_{event}")): (
            f"CREATE TRIGGER {quote_identifier(name)} {when} {event} on {quote_identifier(table.name)} begin {body} end"
        )
        for (when, event), body in bodies.items()
        if body
    }


def _replaced(table: Table, names: Names, itself: str) -> Iterator[str]:
    """Statements that log the keys of the rows that share a unique value with the new row, other than ``itself``."""
    for columns in table.unique:
        same = " and ".join(
            f"airy_row.{quote_identifier(name)} = new.{quote_identifier(name)} collate {quote_identifier(collation)}"
            for name, collation in columns
        )
        yield (
            f"{_logged(table, names, 'D', 'airy_row')} from {quote_identifier(table.name)} as airy_row "
            f"where {same} and ({_differ(table, 'airy_row', itself)});"
        )


def _differ(table: Table, one: str, other: str) -> str:
    keys = (quote_identifier(column.name) for column in table.keys)
    return " or ".join(f"{one}.{key} is not {other}.{key}" for key in keys)


def _logged(table: Table, names: Names, operation: str, row: str) -> str:
    """An insert into the change log of the keys of ``row``; a deletion also carries what its event needs."""
    carried = table.carried if operation == "D" else ()
    values = [_column(row, column) for column in (*_padded(table.keys), *_padded(carried))]
    return (
        f"insert into {names.quoted(TABLE)} (kind, operation, key_1, key_2, old_1, old_2, at, token) "
        f"select {quote_text(table.kind)}, {quote_text(operation)}, {', '.join(values)}, {_NOW_MS}, {_TOKEN}"
    )


def _column(row: str, column: Column | None) -> str:
    return "null" if column is None else f"{row}.{quote_identifier(column.name)}"


def _padded(columns: tuple[Column | None, ...]) -> tuple[Column | None, ...]:
    return (*columns, None, None)[:2]
