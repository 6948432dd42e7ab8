"""The triggers of an SQLite file, as SQL."""

from collections.abc import Iterator, Mapping

from airy_trio.changes.changelog import TABLE
from airy_trio.changes.tables import Column, Table
from airy_trio.database import Names, quote_identifier, quote_text

_NOW_MS = "cast((julianday('now') - 2440587.5) * 86400000 as integer)"
_TOKEN = "lower(hex(randomblob(8)))"  # noqa: S105 - a mark of a row, not a secret


def statements(table: Table, names: Names) -> Iterator[str]:
    """What puts the triggers of one table in place, whatever stood there before."""
    for name, sql in triggers(table, names).items():
        yield f"drop trigger if exists {quote_identifier(name)}"
        yield sql


def triggers(table: Table, names: Names) -> Mapping[str, str]:
    """The triggers of one table by name, as SQLite keeps them."""
    keys_differ = " or ".join(f"old.{q} is not new.{q}" for q in (quote_identifier(c.name) for c in table.keys))
    updated = _logged(table, names, "U", "new")
    deleted = _logged(table, names, "D", "old")
    bodies = {
        "insert": f"{updated};",
        "update": f"{deleted} where {keys_differ}; {updated};",
        "delete": f"{deleted};",
    }
    return {
        (name := f"{names.schema}_{table.kind}_{event}"): (
            f"CREATE TRIGGER {quote_identifier(name)} after {event} on {quote_identifier(table.name)} "
            f"begin {body} end"
        )
        for event, body in bodies.items()
    }


def _logged(table: Table, names: Names, operation: str, row: str) -> str:
    """An insert into the change log of the keys of ``row``; a deletion also carries what its event needs."""
    carried = table.carried if operation == "D" else ()
    values = [_column(row, column) for column in (*_padded(table.keys), *_padded(carried))]
    return (
        f"insert into {names.quoted(TABLE)} (kind, operation, key_1, key_2, old_1, old_2, at, token) "  # noqa: S608
        f"select {quote_text(table.kind)}, {quote_text(operation)}, {', '.join(values)}, {_NOW_MS}, {_TOKEN}"
    )


def _column(row: str, column: Column | None) -> str:
    return "null" if column is None else f"{row}.{quote_identifier(column.name)}"


def _padded(columns: tuple[Column | None, ...]) -> tuple[Column | None, ...]:
    return (*columns, None, None)[:2]
