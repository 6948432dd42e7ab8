"""The triggers on the application's tables: install them, remove them, and find those that are missing or outdated.

They write keys into the change log and nothing else. The SQL is made by ``triggers_postgres`` and
``triggers_sqlite``; what stands in the database is compared with it word for word, so that a mapping that changed
since the last migration is noticed, and what is right already is not touched: no lock is taken for it.

On Postgres a trigger fires for every session but those with ``session_replication_role = replica``: a subscription of
logical replication, and some tools that load data. "always" (``Firing``) includes these. Such triggers fire for each
row, because a subscription applies changes row by row and never fires a trigger for each statement.

The triggers of an SQLite file, as SQL.

``INSERT OR REPLACE`` (and ``UPDATE OR REPLACE``) deletes the rows that share a unique value with the new one without
firing a delete trigger. Where such a row may be another object, a trigger before the write logs its key. It cannot
know whether the row will really go; a row that stays is merely read once more.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

import sqlalchemy as sa
from attrs import evolve, frozen

from airy_trio.capture import postgres_triggers
from airy_trio.capture.change_log import TABLE
from airy_trio.capture.mapping import KINDS, Column, Kind, Table, Tables
from airy_trio.database import POSTGRES, Names, quote_identifier, quote_text

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


Firing = Literal["origin", "always"]
"""When the triggers of Postgres fire: not for the writes of a replica role, or for these too."""
LOCK_WAIT_MAX_S: Final = 0.5  # for all tables together: who writes to one of them may have to wait so long behind us

# Postgres clones the row triggers of a partitioned table onto each partition, and only the clones fire. So a trigger
# fires if it and all its clones do. The partitions are found without a lock, which ``pg_partition_tree`` would take.
_POSTGRES_FOUND = sa.text(
    """
    with recursive ours as (
        select t.tgrelid, t.tgfoid, t.tgname, t.tgenabled, t.tgtype & 1 = 1 as for_each_row, p.prosrc
        from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = :schema and not t.tgisinternal and t.tgparentid = 0
    ),
    member(root, relation) as (
        select distinct tgrelid, tgrelid from ours where for_each_row
        union all
        select member.root, i.inhrelid from member join pg_inherits i on i.inhparent = member.relation
    )
    select n.nspname as schema, c.relname as table, ours.tgname as name, ours.prosrc as body, ours.for_each_row,
           states.fires, states.always
    from ours join pg_class c on c.oid = ours.tgrelid join pg_namespace n on n.oid = c.relnamespace
    cross join lateral (
        select bool_and(state in ('O', 'A')) as fires, bool_and(state = 'A') as always from (
            select ours.tgenabled as state
            union all
            select coalesce(clone.tgenabled, 'D') from member
            left join pg_trigger clone on clone.tgrelid = member.relation and clone.tgfoid = ours.tgfoid
            where member.root = ours.tgrelid and ours.for_each_row
        ) each_state
    ) states
    """
)
_POSTGRES_FUNCTIONS = sa.text(
    """
    select format('%I.%I()', n.nspname, p.proname) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = :schema and p.prorettype = cast('trigger' as regtype)
    """
)
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


@frozen
class _Trigger:
    """What a trigger does and when; on SQLite what it does. The body of one that is switched off is empty."""

    body: str
    for_each_row: bool = False
    always: bool = False

    @property
    def is_off(self) -> bool:
        return not self.body


def install(  # noqa: PLR0913 - what there is, what is wanted, and by which version
    connection: sa.Connection,
    tables: Tables,
    names: Names,
    *,
    deletes: bool,
    firing: Firing | None = None,
    newer_schema: bool = False,
) -> None:
    """Install all triggers and remove those of an older mapping. In the caller's transaction.

    ``firing`` None leaves that as it is: if one of our triggers fires always, all do afterwards. ``newer_schema``: the
    schema is of a newer version, whose triggers stay; only those that are missing or switched off are made.

    On Postgres the tables whose triggers change are locked first, within ``LOCK_WAIT_MAX_S``. Raises the driver's
    error if a lock is not free in that time.
    """
    found = _found(connection, names)
    always = firing == "always" if firing else any(trigger.always for trigger in found.values())
    wanted = _wanted(tables, names, deletes=deletes, always=always)
    right = {place for place, trigger in wanted.items() if found.get(place) == trigger}
    unwanted = found.keys() - wanted.keys()
    if newer_schema:
        right, unwanted = {place for place, trigger in found.items() if not trigger.is_off}, set()
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
            table = evolve(table, row_triggers=table.row_triggers or always)  # noqa: PLW2901 - as it is wanted
            _run(connection, postgres_triggers.statements(table, names, missing, deletes=deletes, always=always))
        else:
            _run(connection, (sql for name, sql in triggers(table, names).items() if name in missing))


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
    found = _found(connection, names)
    run = f"; run: airy-trio migrate --config FILE{', of the newer version' if newer_schema else ''}"
    missing = [place for place in wanted if place not in found]
    off = [place for place in wanted if place in found and found[place].is_off]
    for table in tables.values():
        for what, places in (("has no trigger", missing), ("has triggers that are switched off:", off)):
            yield from _lines(table, names, what, places, run)
        if not newer_schema:
            yield from _lines(table, names, _OUTDATED, _different(tables, names, found, deletes=deletes), run)


def outdated(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> Iterator[str]:
    """A line for each table whose triggers are there and do something else than those of this mapping and version."""
    different = _different(tables, names, _found(connection, names), deletes=deletes)
    for table in tables.values():
        yield from _lines(table, names, _OUTDATED, different)


def _different(tables: Tables, names: Names, found: Mapping[_Place, _Trigger], *, deletes: bool) -> list[_Place]:
    """The triggers that are on, and are what neither way of firing wants."""
    wanted = _wanted(tables, names, deletes=deletes)
    always = _wanted(tables, names, deletes=deletes, always=True)
    there = [place for place in wanted if place in found and not found[place].is_off]
    return [place for place in there if found[place] not in (wanted[place], always[place])]


def firing_always(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> set[Kind]:
    """The kinds whose triggers are all in place and fire for the writes of a replica role too. On Postgres."""
    wanted = _wanted(tables, names, deletes=deletes, always=True)
    found = _found(connection, names)
    skipped = {place.name for place, trigger in wanted.items() if found.get(place) != trigger}
    return {kind for kind in tables if skipped.isdisjoint(_own_names(names, kind))}


def _lines(table: Table, names: Names, what: str, places: Iterable[_Place], remedy: str = "") -> Iterator[str]:
    """A line if some of the triggers are of this table's kind."""
    own = sorted(place.name for place in places if place.name in _own_names(names, table.kind))
    if own:
        yield f'table "{table.name}" ({table.kind}) {what} {", ".join(own)}{remedy}'


def _own_names(names: Names, kind: Kind) -> Iterable[str]:
    """How the triggers of one kind may be called."""
    events = postgres_triggers.EVENTS if names.dialect == POSTGRES else EVENTS
    return {names.trigger(kind, event) for event in events}


def _is_on(place: _Place, table: Table) -> bool:
    return (place.schema, place.table) == (table.schema, table.name)


def _wanted(tables: Tables, names: Names, *, deletes: bool, always: bool = False) -> Mapping[_Place, _Trigger]:
    """Where which trigger belongs, and what it does."""
    wanted = {}
    for table in tables.values():
        if names.dialect == POSTGRES:
            table = evolve(table, row_triggers=table.row_triggers or always)  # noqa: PLW2901 - as it is wanted
            bodies = postgres_triggers.bodies(table, names, deletes=deletes)
            for_rows = {names.trigger(table.kind, event) for event in postgres_triggers.EVENTS_OF_ROWS}
        else:
            bodies, for_rows = triggers(table, names), set()
        for name, body in bodies.items():
            for_each_row = table.row_triggers and name in for_rows
            wanted[_Place(table.schema, table.name, name)] = _Trigger(body, for_each_row, always)
    return wanted


def _found(connection: sa.Connection, names: Names) -> Mapping[_Place, _Trigger]:
    """What stands in the database under our names."""
    if names.dialect != POSTGRES:
        ours = {name for kind in KINDS for name in _own_names(names, kind)}
        rows = connection.execute(_SQLITE_FOUND)
        return {_Place(None, row.table_name, row.name): _Trigger(row.body) for row in rows if row.name in ours}
    return {
        _Place(row.schema, row.table, row.name): _Trigger(row.body if row.fires else "", row.for_each_row, row.always)
        for row in connection.execute(_POSTGRES_FOUND, {"schema": names.schema})
    }


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
