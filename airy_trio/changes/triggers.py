"""The triggers on the application's tables: which ones belong there, put there, found missing or outdated.

They write keys into the change log and nothing else. The SQL is made by ``triggers_postgres`` and
``triggers_sqlite``; what stands in the database is compared with it word for word, so that a mapping that changed
since the last migration is noticed, and what is right already is not touched: no lock is taken for it.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import sqlalchemy as sa
from attrs import frozen

from airy_trio.changes import triggers_postgres, triggers_sqlite
from airy_trio.changes.tables import KINDS, Kind, Table, Tables
from airy_trio.database import POSTGRES, Names, quote_identifier

LOCK_WAIT_MAX_S: Final = 0.5  # for all tables together: who writes to one of them may have to wait so long behind us

_POSTGRES_FOUND = sa.text(
    """
    select n.nspname as schema, c.relname as table, t.tgname as name, p.prosrc as body,
           t.tgenabled in ('O', 'A') and (t.tgtype & 1 = 1) = (t.tgname = any(cast(:row_level as name[]))) as right_kind
    from pg_trigger t
    join pg_proc p on p.oid = t.tgfoid
    join pg_namespace f on f.oid = p.pronamespace
    join pg_class c on c.oid = t.tgrelid
    join pg_namespace n on n.oid = c.relnamespace
    where f.nspname = :schema and not t.tgisinternal and t.tgparentid = 0
    """
)
_POSTGRES_FUNCTIONS = sa.text(
    """
    select format('%I.%I()', n.nspname, p.proname) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = :schema and p.prorettype = cast('trigger' as regtype)
    """
)
_SQLITE_FOUND = sa.text("select tbl_name as table_name, name, sql as body from sqlite_master where type = 'trigger'")


@frozen
class _Place:
    """A trigger's name and its table, whose schema is None on SQLite."""

    schema: str | None
    table: str
    name: str

    @property
    def on(self) -> str:
        return ".".join(quote_identifier(part) for part in (self.schema, self.table) if part is not None)


def install(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> None:
    """Put all triggers in place and take away those of an older mapping. In the caller's transaction.

    On Postgres the tables whose triggers change are locked first, within ``LOCK_WAIT_MAX_S``. Raises the driver's
    error where a lock cannot be had in that time.
    """
    wanted = _wanted(tables, names, deletes=deletes)
    found = _found(connection, tables, names)
    right = {place for place, body in wanted.items() if found.get(place) == body}
    unwanted = found.keys() - wanted.keys()
    if names.dialect == POSTGRES:
        changed = {place.on for place in wanted.keys() - right}
        _lock(connection, sorted({place.on for place in unwanted} | changed), exclusively={p.on for p in unwanted})
        drops = (f"drop trigger {quote_identifier(place.name)} on {place.on}" for place in unwanted)
    else:
        outdated = found.keys() & wanted.keys() - right
        drops = (f"drop trigger {quote_identifier(place.name)}" for place in unwanted | outdated)
    _run(connection, drops)
    for table in tables.values():
        missing = {place.name for place in wanted.keys() - right if _is_on(place, table)}
        if names.dialect == POSTGRES:
            _run(connection, triggers_postgres.statements(table, names, missing, deletes=deletes))
        else:
            _run(connection, (sql for name, sql in triggers_sqlite.triggers(table, names).items() if name in missing))


def remove(connection: sa.Connection, names: Names) -> None:
    """Take away all triggers of ours, whatever tables they are on, and their functions. Locks like ``install``."""
    install(connection, {}, names, deletes=False)
    if names.dialect == POSTGRES:
        functions = connection.execute(_POSTGRES_FUNCTIONS, {"schema": names.schema}).scalars().all()
        _run(connection, (f"drop function {function}" for function in functions))


def faults(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> Iterator[str]:
    """A line for each table whose triggers are missing or are not those of this mapping."""
    wanted = _wanted(tables, names, deletes=deletes)
    found = _found(connection, tables, names)
    for kind, table in tables.items():
        places = [place for place in wanted if place.name in _own_names(names, kind)]
        missing = sorted(place.name for place in places if place not in found)
        outdated = sorted(place.name for place in places if place in found and found[place] != wanted[place])
        if missing:
            yield _fault(kind, table, "has no trigger", missing)
        if outdated:
            yield _fault(kind, table, "has triggers of another mapping or version:", outdated)


def _fault(kind: Kind, table: Table, what: str, triggers: list[str]) -> str:
    return f'table "{table.name}" ({kind}) {what} {", ".join(triggers)}; run: airy-trio migrate --config FILE'


def _own_names(names: Names, kind: Kind) -> Iterable[str]:
    """How the triggers of one kind may be called."""
    events = triggers_postgres.EVENTS if names.dialect == POSTGRES else triggers_sqlite.EVENTS
    return {names.trigger(kind, event) for event in events}


def _is_on(place: _Place, table: Table) -> bool:
    return (place.schema, place.table) == (table.schema, table.name)


def _wanted(tables: Tables, names: Names, *, deletes: bool) -> Mapping[_Place, str]:
    """Where which trigger belongs, and what it does."""
    wanted = {}
    for table in tables.values():
        if names.dialect == POSTGRES:
            bodies = triggers_postgres.bodies(table, names, deletes=deletes)
        else:
            bodies = triggers_sqlite.triggers(table, names)
        wanted.update({_Place(table.schema, table.name, name): body for name, body in bodies.items()})
    return wanted


def _found(connection: sa.Connection, tables: Tables, names: Names) -> Mapping[_Place, str]:
    """What stands in the database under our names; nothing as the body of what is switched off or of another level."""
    ours = {name for kind in KINDS for name in _own_names(names, kind)}
    if names.dialect != POSTGRES:
        rows = connection.execute(_SQLITE_FOUND)
        return {_Place(None, row.table_name, row.name): row.body for row in rows if row.name in ours}
    row_level = [
        names.trigger(kind, event)
        for kind, table in tables.items()
        if table.row_triggers
        for event in triggers_postgres.EVENTS_OF_ROWS
    ]
    rows = connection.execute(_POSTGRES_FOUND, {"schema": names.schema, "row_level": row_level})
    return {_Place(row.schema, row.table, row.name): row.body if row.right_kind else "" for row in rows}


def _lock(connection: sa.Connection, tables: Iterable[str], *, exclusively: set[str]) -> None:
    """Lock the tables as their new triggers will, one after the other, in ``LOCK_WAIT_MAX_S`` together."""
    give_up_at = time.monotonic() + LOCK_WAIT_MAX_S
    before = connection.exec_driver_sql("show lock_timeout").scalar_one()
    for table in tables:
        left_ms = max(1, round((give_up_at - time.monotonic()) * 1000))
        connection.exec_driver_sql(f"set local lock_timeout = {left_ms}")
        mode = "access exclusive" if table in exclusively else "share row exclusive"
        _run(connection, [f"lock table {table} in {mode} mode"])
    connection.exec_driver_sql(f"set local lock_timeout = '{before}'")


def _run(connection: sa.Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.execute(sa.text(statement.replace(":", "\\:")))
