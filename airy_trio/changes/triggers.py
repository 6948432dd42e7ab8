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
           t.tgenabled in ('O', 'A') as enabled,
           (t.tgtype & 1 = 1) = (t.tgname = any(cast(:row_level as name[]))) as right_level
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
_OFF: Final = ""
"""In place of the body of a trigger that is switched off."""
_OTHER_LEVEL: Final = "-- of another level"
"""In place of the body of a trigger for each row that should be one for each statement, or the other way round."""
_OUTDATED: Final = "has triggers of another mapping or version:"
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


def install(
    connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool, newer_schema: bool = False
) -> None:
    """Put all triggers in place and take away those of an older mapping. In the caller's transaction.

    ``newer_schema``: the schema is of a newer version, whose triggers stay; only those that are missing are made.

    On Postgres the tables whose triggers change are locked first, within ``LOCK_WAIT_MAX_S``. Raises the driver's
    error where a lock cannot be had in that time.
    """
    wanted = _wanted(tables, names, deletes=deletes)
    found = _found(connection, tables, names)
    right = {place for place, body in wanted.items() if found.get(place) == body}
    unwanted = found.keys() - wanted.keys()
    if newer_schema:
        right, unwanted = {place for place in found if found[place] != _OFF}, set()
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


def faults(
    connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool, newer_schema: bool = False
) -> Iterator[str]:
    """A line for each table whose triggers are missing, are switched off, or are not those of this mapping.

    ``newer_schema``: the schema is of a newer version, whose triggers may do other things (``outdated``): no fault.
    """
    wanted = _wanted(tables, names, deletes=deletes)
    found = _found(connection, tables, names)
    run = f"; run: airy-trio migrate --config FILE{', of the newer version' if newer_schema else ''}"
    for table in tables.values():
        missing = [place for place in wanted if place not in found]
        off = [place for place in wanted if found.get(place) == _OFF]
        for what, places in (("has no trigger", missing), ("has triggers that are switched off:", off)):
            yield from _told(table, names, what, places, run)
        if not newer_schema:
            yield from _told(table, names, _OUTDATED, _different(wanted, found), run)


def outdated(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> Iterator[str]:
    """A line for each table whose triggers are there and do something else than those of this mapping and version."""
    different = _different(_wanted(tables, names, deletes=deletes), _found(connection, tables, names))
    for table in tables.values():
        yield from _told(table, names, _OUTDATED, different)


def _different(wanted: Mapping[_Place, str], found: Mapping[_Place, str]) -> list[_Place]:
    return [place for place, body in wanted.items() if found.get(place, _OFF) not in {body, _OFF}]


def _told(table: Table, names: Names, what: str, places: Iterable[_Place], remedy: str = "") -> Iterator[str]:
    """A line if some of the triggers are of this table's kind."""
    own = sorted(place.name for place in places if place.name in _own_names(names, table.kind))
    if own:
        yield f'table "{table.name}" ({table.kind}) {what} {", ".join(own)}{remedy}'


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
    """The bodies of the triggers in the database under our names, or ``_OFF`` or ``_OTHER_LEVEL``."""
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
    found = {}
    for row in rows:
        body = row.body if row.right_level else _OTHER_LEVEL
        found[_Place(row.schema, row.table, row.name)] = body if row.enabled else _OFF
    return found


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
