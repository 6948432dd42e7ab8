"""The triggers on the application's tables: install them, remove them, and find missing or outdated ones.

The triggers write keys into the change log and nothing else. ``postgres_triggers`` and the end of this module write
their SQL. The text of each trigger in the database is compared with that SQL literally. So a mapping that has changed
since the last migration is noticed, and triggers that are already right are left alone, without a lock.

On Postgres a trigger fires in every session except those with ``session_replication_role = replica``: the workers that
apply a subscription of logical replication, and some tools that load data. ``Firing`` "always" includes these. Such
triggers fire for each row, because a subscription applies changes row by row and never fires statement triggers.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

import sqlalchemy as sa
from attrs import frozen

from airy_trio.capture import postgres_triggers
from airy_trio.capture.change_log import TABLE
from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import KINDS, Table, Tables, quoted_name
from airy_trio.capture.postgres_triggers import Trigger
from airy_trio.database import POSTGRES, Names, escape_colons, quote_identifier, quote_text

Firing = Literal["origin", "always"]
"""When the triggers of Postgres fire: not for the writes of a replica role, or for these too."""

# For all tables together. Writers to these tables queue behind our request for a lock, so they may wait as long.
LOCK_WAIT_MAX_S: Final = 0.5

_OUTDATED: Final = "has triggers of another mapping or version:"

# A row trigger on a partitioned table has a clone on each partition at any depth, and only clones fire. It counts as
# enabled only if it and all its clones are. A partition without a clone counts as one with a disabled clone.
#
# The function of a row trigger contains the oid of its table (see ``postgres_triggers``). In a restored dump the table
# has another oid, but the trigger still logs its rows. So only a migration compares the oid, and renews the function.
_POSTGRES_FOUND = sa.text(
    """
    with recursive ours as (
        select t.tgrelid, t.tgfoid, t.tgname, t.tgenabled, t.tgtype & 1 = 1 as for_each_row,
               case when :exactly then p.prosrc else regexp_replace(
                   p.prosrc, '''[0-9]+''::regclass', format('''%s''::regclass', t.tgrelid), 'g'
               ) end as prosrc,
               'extra_float_digits=1' = any(p.proconfig) as plain_text
        from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = :schema and not t.tgisinternal and t.tgparentid = 0
    ),
    member(root, relation) as (
        select distinct tgrelid, tgrelid from ours where for_each_row
        union all
        select member.root, i.inhrelid from member join pg_inherits i on i.inhparent = member.relation
    )
    select n.nspname as schema, c.relname as table, ours.tgname as name, ours.prosrc as body, ours.for_each_row,
           ours.plain_text, states.fires, states.always
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


@frozen
class _Place:
    """A trigger's name and its table. The schema is None on SQLite."""

    schema: str | None
    table: str
    name: str

    @property
    def on(self) -> str:
        return quoted_name(self.schema, self.table)


def install(  # noqa: PLR0913 - tables, options, and the version of the schema
    connection: sa.Connection,
    tables: Tables,
    names: Names,
    *,
    deletes: bool,
    firing: Firing | None = None,
    newer_schema: bool = False,
) -> None:
    """Install all triggers and remove those of an older mapping, in the caller's transaction.

    ``firing`` None retains the present mode: if one of our triggers fires always, all do afterwards. ``newer_schema``:
    a newer version created the schema. Its triggers stay; only those that are missing or disabled are created.

    On Postgres the tables whose triggers change are locked first, within ``LOCK_WAIT_MAX_S``. Raises the driver's
    error if the locks are not free in that time.
    """
    found = _found(connection, names, exactly=True)
    always = firing == "always" if firing else any(trigger.always for trigger in found.values())
    wanted: dict[_Place, Trigger] = {}
    for table in tables.values():
        wanted |= _of_table(table, names, deletes=deletes, always=always)
    if newer_schema:
        right, unwanted = {place for place, trigger in found.items() if not trigger.is_disabled}, set[_Place]()
    else:
        # A disabled trigger has an empty body, so it equals no wanted one. It is therefore replaced, which enables it.
        right = {place for place, trigger in wanted.items() if found.get(place) == trigger}
        unwanted = found.keys() - wanted.keys()
    due = {place: trigger for place, trigger in wanted.items() if place not in right}
    if names.dialect == POSTGRES:
        dropped_on = {place.on for place in unwanted}
        _lock(connection, sorted(dropped_on | {place.on for place in due}), exclusively=dropped_on)
        drops = (f"drop trigger {quote_identifier(place.name)} on {place.on}" for place in unwanted)
    else:  # SQLite cannot replace a trigger in place.
        outdated = found.keys() & due.keys()
        drops = (f"drop trigger {quote_identifier(place.name)}" for place in unwanted | outdated)
    execute(connection, drops)
    for trigger in due.values():
        execute(connection, trigger.statements)


def remove(connection: sa.Connection, names: Names) -> None:
    """Remove all our triggers, on whatever tables they are, and what they need. Locks like ``install``."""
    install(connection, {}, names, deletes=False)
    if names.dialect == POSTGRES:
        functions = connection.execute(_POSTGRES_FUNCTIONS, {"schema": names.schema}).scalars().all()
        execute(connection, (f"drop function {function}" for function in functions))


def faults(
    connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool, newer_schema: bool = False
) -> Iterator[str]:
    """Yield a line for each table whose triggers are missing, disabled, or not those of this mapping.

    ``newer_schema``: a newer version created the schema. That its triggers differ is then not a fault.
    """
    found = _found(connection, names)
    remedy = f"; run: airy-trio migrate --config FILE{', of the newer version' if newer_schema else ''}"
    for table in tables.values():
        wanted = _of_table(table, names, deletes=deletes)
        missing = [place for place in wanted if place not in found]
        disabled = [place for place in wanted if place in found and found[place].is_disabled]
        yield from _line(table, "has no trigger", missing, remedy)
        yield from _line(table, "has triggers that are switched off:", disabled, remedy)
        if not newer_schema:
            yield from _line(table, _OUTDATED, _different(table, names, found, deletes=deletes), remedy)


def outdated(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> Iterator[str]:
    """Yield a line for each table with triggers that do something else than those of this mapping and version."""
    found = _found(connection, names)
    for table in tables.values():
        yield from _line(table, _OUTDATED, _different(table, names, found, deletes=deletes))


def firing_always(connection: sa.Connection, tables: Tables, names: Names, *, deletes: bool) -> set[Kind]:
    """Return the kinds whose triggers all exist and fire for the writes of a replica role too. Postgres only."""
    found = _found(connection, names)
    return {
        kind
        for kind, table in tables.items()
        if all(
            found.get(place) == trigger
            for place, trigger in _of_table(table, names, deletes=deletes, always=True).items()
        )
    }


def _different(table: Table, names: Names, found: Mapping[_Place, Trigger], *, deletes: bool) -> list[_Place]:
    """Return the enabled triggers of a table that are wrong in either mode of firing."""
    origin = _of_table(table, names, deletes=deletes)
    always = _of_table(table, names, deletes=deletes, always=True)
    enabled = [place for place in origin if place in found and not found[place].is_disabled]
    return [place for place in enabled if found[place] not in (origin[place], always[place])]


def _line(table: Table, fault: str, places: Iterable[_Place], remedy: str = "") -> Iterator[str]:
    if triggers := sorted(place.name for place in places):
        yield f'table "{table.name}" ({table.kind}) {fault} {", ".join(triggers)}{remedy}'


def _of_table(table: Table, names: Names, *, deletes: bool, always: bool = False) -> dict[_Place, Trigger]:
    """Return the triggers that a table should have."""
    if names.dialect == POSTGRES:
        triggers = postgres_triggers.triggers(table, names, deletes=deletes, always=always)
    else:
        triggers = _sqlite_triggers(table, names)
    return {_Place(table.schema, table.name, name): trigger for name, trigger in triggers.items()}


def _found(connection: sa.Connection, names: Names, *, exactly: bool = False) -> Mapping[_Place, Trigger]:
    """Return the triggers in the database that have our names or call our functions.

    ``exactly``: with the oids that the functions contain (see ``_POSTGRES_FOUND``).
    """
    if names.dialect != POSTGRES:
        ours = {names.trigger(kind, event) for kind in KINDS for event in _SQLITE_EVENTS}
        rows = connection.execute(_SQLITE_FOUND)
        return {_Place(None, row.table_name, row.name): Trigger(row.body) for row in rows if row.name in ours}
    return {
        _Place(row.schema, row.table, row.name): Trigger(
            row.body if row.fires else "", row.for_each_row, row.always, row.plain_text
        )
        for row in connection.execute(_POSTGRES_FOUND, {"schema": names.schema, "exactly": exactly})
    }


def _lock(connection: sa.Connection, tables: Iterable[str], *, exclusively: set[str]) -> None:
    """Lock the tables one after the other, in ``LOCK_WAIT_MAX_S`` together, in the modes that DDL will need."""
    # Each table gets its strongest mode at once. To raise the mode later could be a deadlock with a session that has
    # read the table and waits for our first lock in order to write.
    deadline = time.monotonic() + LOCK_WAIT_MAX_S
    before = connection.exec_driver_sql("show lock_timeout").scalar_one()
    for table in tables:
        # At least 1, because 0 means no limit.
        left_ms = max(1, round((deadline - time.monotonic()) * 1000))
        connection.exec_driver_sql(f"set local lock_timeout = {left_ms}")
        mode = "access exclusive" if table in exclusively else "share row exclusive"
        execute(connection, [f"lock table {table} in {mode} mode"])
    connection.exec_driver_sql(f"set local lock_timeout = '{before}'")


def execute(connection: sa.Connection, statements: Iterable[str]) -> None:
    """Run statements without parameters."""
    for statement in statements:
        connection.execute(sa.text(escape_colons(statement)))


# The triggers of an SQLite file.

_SQLITE_EVENTS: Final = ("insert", "update", "delete", "before_insert", "before_update")
_SQLITE_FOUND = sa.text("select tbl_name as table_name, name, sql as body from sqlite_master where type = 'trigger'")
# Triggers run in the application's SQLite library, so they only use functions that old versions have too, and none that
# applications often replace by their own, such as ``lower``: if a connection does not trust the schema, SQLite rejects
# those in a trigger. 2440587.5 is the Julian day of 1970-01-01.
SQLITE_NOW_MS: Final = "cast((julianday('now') - 2440587.5) * 86400000 as integer)"
SQLITE_TOKEN: Final = "hex(randomblob(8))"  # noqa: S105 - identifies a row, not a secret


def _sqlite_triggers(table: Table, names: Names) -> Mapping[str, Trigger]:
    """Return the triggers of one table by name. Their text is the ``CREATE TRIGGER`` statement, as SQLite stores it.

    ``INSERT OR REPLACE`` and ``UPDATE OR REPLACE`` delete the rows that share a unique value with the new row, and fire
    no delete trigger for them. If such a row may belong to another object, a trigger before the write logs its key.
    Whether the row will really be deleted is not known at that time; a row that remains is merely read once more.
    """
    updated = _logged(table, names, "U", "new")
    deleted = _logged(table, names, "D", "old")
    # If a connection of the application has set ``PRAGMA recursive_triggers``, REPLACE does fire the delete trigger.
    # The change log then has one more deletion, which is harmless: a deletion counts only if there is no row.
    bodies = {
        ("after", "insert"): f"{updated};",
        ("after", "update"): f"{deleted} where {_differ(table, 'old', 'new')}; {updated};",
        ("after", "delete"): f"{deleted};",
        ("before", "insert"): "".join(_replaced(table, names, "new")),
        ("before", "update"): "".join(_replaced(table, names, "old")),
    }
    made = {}
    for (when, event), body in bodies.items():
        if body:
            name = names.trigger(table.kind, event if when == "after" else f"{when}_{event}")
            on = quote_identifier(table.name)
            text = f"CREATE TRIGGER {quote_identifier(name)} {when} {event} on {on} begin {body} end"
            made[name] = Trigger(text, statements=(text,))
    return made


def _replaced(table: Table, names: Names, itself: str) -> Iterator[str]:
    """Yield statements that log the keys of rows with a unique value of the new row, except those of ``itself``."""
    for columns in table.unique:
        # By the collation of the index, which decides what is replaced and may differ from the column's.
        same = " and ".join(
            f"airy_row.{quote_identifier(name)} = new.{quote_identifier(name)} collate {quote_identifier(collation)}"
            for name, collation in columns
        )
        yield (
            f"{_logged(table, names, 'D', 'airy_row')} from {quote_identifier(table.name)} as airy_row "
            f"where {same} and ({_differ(table, 'airy_row', itself)});"
        )


def _differ(table: Table, one: str, other: str) -> str:
    """Return whether two rows have different keys, also for a column whose collation takes them for equal."""
    keys = (quote_identifier(column.name) for column in table.keys)
    return " or ".join(f"{one}.{key} is not {other}.{key} collate binary" for key in keys)


def _logged(table: Table, names: Names, operation: str, row: str) -> str:
    """Return an insert of the keys of ``row`` into the change log; a deletion also logs what its event needs."""
    columns = table.logged_columns(operation)
    values = ["null" if column is None else f"{row}.{quote_identifier(column.name)}" for column in columns]
    return (
        f"insert into {names.quoted(TABLE)} (kind, operation, key_1, key_2, old_1, old_2, at, token) "
        f"select {quote_text(table.kind)}, {quote_text(operation)}, {', '.join(values)}, "
        f"{SQLITE_NOW_MS}, {SQLITE_TOKEN}"
    )
