"""What a server's role needs on Postgres: to read the mapped tables, and to work in our schema. Nothing else."""

from collections.abc import Iterator

from airy_trio.changes.tables import Tables
from airy_trio.changes.triggers_postgres import qualified
from airy_trio.database import Names, quote_identifier


def statements(role: str, tables: Tables, names: Names) -> Iterator[str]:
    """Grant it to a role. The triggers need no right: they run with those of their owner."""
    to = quote_identifier(role)
    for schema in sorted({table.schema for table in tables.values() if table.schema is not None}):
        yield f"grant usage on schema {quote_identifier(schema)} to {to}"
    for table in tables.values():
        yield f"grant select on {qualified(table)} to {to}"
    schema = quote_identifier(names.schema)
    yield f"grant usage on schema {schema} to {to}"
    yield f"grant select, insert, update, delete on all tables in schema {schema} to {to}"
