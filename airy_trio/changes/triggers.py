"""The triggers on the application's tables: which ones belong there, put there, found missing or outdated.

They write keys into the change log and nothing else. The SQL is made by ``triggers_postgres`` and
``triggers_sqlite``; what stands in the database is compared with it word for word, so that a mapping that changed
since the last migration is noticed.
"""

from collections.abc import Iterator, Mapping

import sqlalchemy as sa

from airy_trio.changes import triggers_postgres, triggers_sqlite
from airy_trio.changes.tables import Kind, Table, Tables
from airy_trio.database import POSTGRES, Names

_POSTGRES_FOUND = sa.text(
    """
    select t.tgname as name, p.prosrc as body
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    where t.tgrelid = to_regclass(:table) and not t.tgisinternal and t.tgenabled in ('O', 'A')
    """
)
_SQLITE_FOUND = sa.text("select name, sql as body from sqlite_master where type = 'trigger'")


def install(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> None:
    """Put all triggers in place, replacing what stands there under our names. In the caller's transaction."""
    for table in tables.values():
        if names.dialect == POSTGRES:
            statements = triggers_postgres.statements(table, names, deletes=deletes)
        else:
            statements = triggers_sqlite.statements(table, names)
        for statement in statements:
            connection.execute(sa.text(statement.replace(":", "\\:")))


def faults(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> Iterator[str]:
    """A line for each table whose triggers are missing or are not those of this mapping."""
    for kind, table in tables.items():
        wanted = _wanted(table, names, deletes=deletes)
        found = _found(connection, table, names)
        missing = sorted(wanted.keys() - found.keys())
        outdated = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
        if missing:
            yield _fault(kind, table, "has no trigger", missing)
        if outdated:
            yield _fault(kind, table, "has triggers of another mapping or version:", outdated)


def _fault(kind: Kind, table: Table, what: str, triggers: list[str]) -> str:
    return f'table "{table.name}" ({kind}) {what} {", ".join(triggers)}; run: airy-trio migrate --config FILE'


def _wanted(table: Table, names: Names, *, deletes: bool) -> Mapping[str, str]:
    if names.dialect == POSTGRES:
        return triggers_postgres.bodies(table, names, deletes=deletes)
    return triggers_sqlite.triggers(table, names)


def _found(connection: sa.Connection, table: Table, names: Names) -> Mapping[str, str]:
    if names.dialect == POSTGRES:
        rows = connection.execute(_POSTGRES_FOUND, {"table": triggers_postgres.qualified(table)})
    else:
        rows = connection.execute(_SQLITE_FOUND)
    return {row.name: row.body for row in rows}
