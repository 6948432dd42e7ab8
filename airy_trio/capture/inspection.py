"""Does the mapping fit the tables that are really there? All faults at once, each naming its setting."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Final

import sqlalchemy as sa
from attrs import evolve
from sqlalchemy.exc import DBAPIError

from airy_trio.changes.feed import Batch, TablesChanged
from airy_trio.changes.queries import Queries
from airy_trio.changes.relations import Relation, find
from airy_trio.changes.rows import Value
from airy_trio.changes.sweep import Sweep
from airy_trio.changes.tables import (
    FIELDS,
    WATERMARK,
    Column,
    Kind,
    MessagesOptions,
    Table,
    TableOptions,
    Tables,
    TablesOptions,
)
from airy_trio.database import POSTGRES, DatabaseRefused, quote_identifier, translated
from airy_trio.errors import MappingError

READS_MAX: Final = 5
"""Reads of one batch while the application changes its tables again and again."""
_STORED_AS_TEXT: Final = frozenset({"conversation_id", "channel_id"})
"""Fields beside the keys that have a column of their own in the event log."""
_UNTRANSLATABLE: Final = "22P05"
_TEXT = sa.text("select cast(:text as text)")
_ROW_SECURITY = sa.text("select current_user, row_security_active(to_regclass(:name))")


def inspect(
    connection: sa.Connection, options: TablesOptions, *, watermarks: bool = False, holds_log: bool = False
) -> Tables:
    """Find the mapped tables. Raises ``MappingError`` with every fault.

    ``watermarks``: changes are captured by ``updated_at``, so that each table must have a column for it.
    ``holds_log``: this database stores the events as well, so its encoding must have every character of their ids.
    """
    faults: list[str] = []
    tables: dict[Kind, Table] = {}
    for kind, mapping in options.items():
        location = mapping.location(kind)
        if location is not None:
            before = len(faults)
            table = _table(connection, kind, mapping, location, faults, watermarks=watermarks)
            if holds_log and connection.dialect.name == POSTGRES:
                faults += _encoding_faults(connection, kind, mapping)
            if table is not None and len(faults) == before:
                faults += _reading_faults(connection, table)
                tables[kind] = table
    if not faults and not tables:
        faults.append("database.tables: every table is mapped to nothing, so there is nothing to watch")
    if faults:
        raise MappingError(faults)
    return tables


def inspect_again(connection: sa.Connection, tables: Tables) -> Tables:
    """The same tables as they are now. Raises ``MappingError``, which names the setting, where something is gone."""
    faults: list[str] = []
    again: dict[Kind, Table] = {}
    for kind, table in tables.items():
        relation = find(connection, table.schema, table.name)
        names = {field: column.name for field, column in table.columns.items()}
        found = {field: relation.column(name) if relation else None for field, name in names.items()}
        columns = {field: column for field, column in found.items() if column is not None}
        watermark = relation.column(table.watermark.name) if relation and table.watermark else None
        is_complete = columns.keys() == names.keys() and (watermark is None) == (table.watermark is None)
        if relation is None or relation.unwatchable or not is_complete:
            gone = sorted(names[field] for field in names.keys() - columns.keys())
            gone += [table.watermark.name] if table.watermark and watermark is None else []
            what = f"without its columns {', '.join(gone)}" if relation and gone else "gone, or no table any more"
            faults.append(f'database.tables.{kind}: the table "{table.name}" is {what}')
        else:
            again[kind] = evolve(
                table,
                columns=columns,
                row_triggers=relation.row_triggers,
                unique=_replacing(relation, columns, kind),
                watermark=watermark,
                by_conversation=_by_conversation(relation, columns),
                definition=relation.definition,
            )
    if faults:
        raise MappingError(faults)
    return again


async def read_current(read: Callable[[], Awaitable[Batch]], renew: Callable[[], Awaitable[bool]]) -> Batch:
    """Read a batch; where the tables are not as inspected any more, inspect them again and read again.

    ``renew`` inspects the tables and returns whether they have changed. Raises what ``read`` raises: a refusal by the
    database only if the tables have not changed, and ``TablesChanged`` if they change faster than they are read. Raises
    ``MappingError`` if the database refuses to read what is gone.
    """
    for _ in range(READS_MAX - 1):
        refused: DatabaseRefused | None = None
        try:
            return await read()
        except TablesChanged:
            pass
        except DatabaseRefused as error:
            refused = error
        try:
            changed = await renew()
        except MappingError:
            if refused is not None:
                raise
            continue  # another table is gone, which this read may not need
        if refused is not None and not changed:
            raise refused
    return await read()


def absent(connection: sa.Connection, options: TablesOptions) -> list[Kind]:
    """The kinds whose table has our own name and is not there."""
    return [kind for kind, mapping in options.items() if mapping.name is None and find(connection, None, kind) is None]


def _table(  # noqa: PLR0913 - what there is, what is wanted of it, and where faults go
    connection: sa.Connection,
    kind: Kind,
    options: TableOptions,
    location: tuple[str | None, str],
    faults: list[str],
    *,
    watermarks: bool,
) -> Table | None:
    setting = f"database.tables.{kind}"
    shown = ".".join(part for part in location if part)
    relation = find(connection, *location)
    if relation is None:
        faults.append(
            f'{setting}.name: there is no table "{shown}" in the database (name the application\'s table, or "" if it '
            "has none; `airy-trio migrate --with-tables` makes our default tables)"
        )
        return None
    if relation.unwatchable:
        faults.append(f'{setting}.name: "{shown}" {relation.unwatchable}')
        return None
    columns = _columns(kind, options, relation, faults)
    constants: dict[str, Value] = {f.name: None for f in FIELDS[kind] if f.optional and f.name not in columns}
    constants |= options.constants
    keys = [f for f in FIELDS[kind] if f.key]
    if all(f.name in options.constants or (f.optional and f.name not in columns) for f in keys):
        names = " and ".join(f.name for f in keys)
        faults.append(f"{setting}.constants: without a column for {names} rows cannot be told apart")
    return Table(
        kind=kind,
        schema=relation.schema,
        name=relation.name,
        columns=columns,
        constants=constants,
        values=options.values,
        where=options.where,
        time_zone=options.time_zone,
        content_form=options.content if isinstance(options, MessagesOptions) else "auto",
        row_triggers=relation.row_triggers,
        unique=_replacing(relation, columns, kind),
        watermark=_watermark(kind, options, relation, faults) if watermarks else None,
        by_conversation=_by_conversation(relation, columns),
        definition=relation.definition,
    )


def _by_conversation(relation: Relation, columns: Mapping[str, Column]) -> bool:
    return "conversation_id" in columns and columns["conversation_id"].name in relation.leading


def _watermark(kind: Kind, options: TableOptions, relation: Relation, faults: list[str]) -> Column | None:
    setting = f"database.tables.{kind}"
    if WATERMARK in options.constants:
        faults.append(f'{setting}.constants.{WATERMARK}: changes.capture = "updated_at" needs a column for it')
        return None
    name = options.columns.get(WATERMARK, WATERMARK)
    column = relation.column(name)
    if column is None:
        faults.append(
            f'{setting}.columns.{WATERMARK}: changes.capture = "updated_at" needs a column that tells when a row of '
            f'"{relation.name}" was changed, and it has no "{name}" (columns: {", ".join(sorted(relation.columns))})'
        )
    return column


def _replacing(
    relation: Relation, columns: Mapping[str, Column], kind: Kind
) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The unique indexes by which a row may replace one of another key."""
    keys = {columns[field.name].name for field in FIELDS[kind] if field.key and field.name in columns}
    return tuple(index for index in relation.unique if not keys <= {name for name, how in index if how == "BINARY"})


def _columns(kind: Kind, options: TableOptions, relation: Relation, faults: list[str]) -> Mapping[str, Column]:
    columns: dict[str, Column] = {}
    for field in FIELDS[kind]:
        if field.name in options.constants:
            continue
        name = options.columns.get(field.name, field.name)
        column = relation.column(name)
        if column is not None:
            columns[field.name] = column
        elif field.name in options.columns or not field.optional:
            near = get_close_matches(name, relation.columns, n=1)
            hint = f', perhaps "{near[0]}"' if near else ""
            faults.append(
                f'database.tables.{kind}.columns.{field.name}: table "{relation.name}" has no column "{name}"{hint} '
                f"(columns: {', '.join(sorted(relation.columns))})"
            )
    return columns


def _reading_faults(connection: sa.Connection, table: Table) -> Iterator[str]:
    """A line where the table cannot be read as it is mapped: a missing right, a ``where`` that is no condition."""
    setting = f"database.tables.{table.kind}"
    without_where = _refusal(connection, evolve(table, where=""))
    if without_where:
        reason = _hidden(connection, table) or f"cannot be read: {without_where}"
        yield f'{setting}.name: "{table.name}" {reason}'
    elif table.where and (refusal := _refusal(connection, table)):
        yield f'{setting}.where: not a condition over the columns of "{table.name}": {refusal}'


def _encoding_faults(connection: sa.Connection, kind: Kind, options: TableOptions) -> Iterator[str]:
    """A line for each text of the mapping that becomes part of an event's ids and that this database cannot store.

    Every other id comes from this database, and all else of an event is stored as octets.
    """
    for field in FIELDS[kind]:
        if not (field.key or field.name in _STORED_AS_TEXT):
            continue
        texts = {f"constants.{field.name}": options.constants.get(field.name)}
        texts |= {f"values.{field.name}.{theirs}": ours for theirs, ours in options.values.get(field.name, {}).items()}
        for setting, text in texts.items():
            if isinstance(text, str) and not text.isascii() and not _can_store(connection, text):
                encoding = connection.exec_driver_sql("show server_encoding").scalar_one()
                yield (
                    f'database.tables.{kind}.{setting}: "{text}" has a character that the database\'s encoding, '
                    f"{encoding}, has not; name another text, or keep the event log elsewhere (log.url)"
                )


def _can_store(connection: sa.Connection, text: str) -> bool:
    try:
        with connection.begin_nested():
            connection.execute(_TEXT, {"text": text})
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _UNTRANSLATABLE:
            raise
        return False
    return True


def _hidden(connection: sa.Connection, table: Table) -> str:
    """Why a table cannot be read of which a policy would hide rows from our role; nothing where that is not so."""
    if connection.dialect.name != POSTGRES:
        return ""
    name = ".".join(quote_identifier(part) for part in (table.schema, table.name) if part is not None)
    role, is_hidden = connection.execute(_ROW_SECURITY, {"name": name}).one()
    if not is_hidden:
        return ""
    return (
        f'is under row level security, which would hide rows from the role "{role}"; as a superuser: '
        f"ALTER ROLE {quote_identifier(role)} BYPASSRLS, or connect as the table's owner (without FORCE ROW LEVEL "
        "SECURITY)"
    )


def _refusal(connection: sa.Connection, table: Table) -> str:
    try:
        with connection.begin_nested():
            Queries(connection.dialect.name, table).try_out(connection)
            if table.watermark is not None:
                Sweep(connection.dialect.name, table).try_out(connection)
    except DBAPIError as error:
        told = translated(error)
        if not isinstance(told, DatabaseRefused):
            raise
        return str(told)
    return ""
