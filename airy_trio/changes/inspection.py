"""Does the mapping fit the tables that are really there? All faults at once, each naming its setting."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches

import sqlalchemy as sa
from attrs import frozen

from airy_trio.changes.rows import Value
from airy_trio.changes.tables import FIELDS, Column, ColumnType, Kind, Table, TableOptions, Tables, TablesOptions
from airy_trio.database import POSTGRES, quote_identifier
from airy_trio.errors import MappingError

_POSTGRES_RELATION = sa.text(
    """
    select c.oid, n.nspname as schema, c.relname as name, c.relkind, c.relispartition, c.relhassubclass
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = to_regclass(:name)
    """
)
_POSTGRES_COLUMNS = sa.text(
    """
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as sql_type,
           coalesce(base.typname, t.typname) as base_type
    from pg_attribute a
    join pg_type t on t.oid = a.atttypid
    left join pg_type base on base.oid = nullif(t.typbasetype, 0)
    where a.attrelid = :oid and a.attnum > 0 and not a.attisdropped
    """
)
_SQLITE_RELATION = sa.text("select name, type from sqlite_master where type in ('table', 'view') and name = :name collate nocase")
_SQLITE_COLUMNS = sa.text("select name, type from pragma_table_xinfo(:name) where hidden <> 1")
_POSTGRES_TYPES: Mapping[str, ColumnType] = {
    "json": "json",
    "jsonb": "json",
    "timestamptz": "timestamptz",
    "timestamp": "timestamp",
    "date": "timestamp",
    "float4": "float",
    "float8": "float",
    "int2": "integer",
    "int4": "integer",
    "int8": "integer",
    "uuid": "uuid",
}


@frozen(kw_only=True)
class _Relation:
    """What the database has under a name."""

    schema: str | None
    name: str
    is_table: bool
    row_triggers: bool
    columns: Mapping[str, Column]


def inspect(connection: sa.Connection, options: TablesOptions) -> Tables:
    """Find the mapped tables. Raises ``MappingError`` with every fault."""
    find = _find_postgres if connection.dialect.name == POSTGRES else _find_sqlite
    faults: list[str] = []
    tables: dict[Kind, Table] = {}
    for kind, mapping in options.items():
        table = _table(connection, kind, mapping, find, faults)
        if table is not None:
            tables[kind] = table
    if not faults and not tables:
        faults.append("database.tables: every table is mapped to nothing, so there is nothing to watch")
    if faults:
        raise MappingError(faults)
    return tables


def _table(
    connection: sa.Connection,
    kind: Kind,
    options: TableOptions,
    find: Callable[[sa.Connection, str | None, str], _Relation | None],
    faults: list[str],
) -> Table | None:
    location = options.location(kind)
    if location is None:
        return None
    setting = f"database.tables.{kind}"
    shown = ".".join(part for part in location if part)
    relation = find(connection, *location)
    if relation is None:
        faults.append(
            f'{setting}.name: there is no table "{shown}" in the database (name the application\'s table, or "" if it '
            "has none; `airy-trio migrate --with-tables` makes our default tables)"
        )
        return None
    if not relation.is_table:
        faults.append(f'{setting}.name: "{shown}" is not a table; a view cannot be watched')
        return None
    columns = _columns(kind, options, relation, faults)
    constants: dict[str, Value] = {f.name: None for f in FIELDS[kind] if f.optional and f.name not in columns}
    constants |= options.constants
    return Table(
        kind=kind,
        schema=relation.schema,
        name=relation.name,
        columns=columns,
        constants=constants,
        values=options.values,
        where=options.where,
        time_zone=options.time_zone,
        row_triggers=relation.row_triggers,
    )


def _columns(kind: Kind, options: TableOptions, relation: _Relation, faults: list[str]) -> Mapping[str, Column]:
    columns: dict[str, Column] = {}
    for field in FIELDS[kind]:
        if field.name in options.constants:
            continue
        name = options.columns.get(field.name, field.name)
        column = relation.columns.get(name)
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


def _find_postgres(connection: sa.Connection, schema: str | None, name: str) -> _Relation | None:
    quoted = ".".join(quote_identifier(part) for part in (schema, name) if part is not None)
    row = connection.execute(_POSTGRES_RELATION, {"name": quoted}).one_or_none()
    if row is None:
        return None
    columns = {
        column.name: Column(
            name=column.name, type=_POSTGRES_TYPES.get(column.base_type, "other"), sql_type=column.sql_type
        )
        for column in connection.execute(_POSTGRES_COLUMNS, {"oid": row.oid})
    }
    return _Relation(
        schema=row.schema,
        name=row.name,
        is_table=row.relkind in ("r", "p"),
        row_triggers=row.relkind == "p" or row.relispartition or row.relhassubclass,
        columns=columns,
    )


def _find_sqlite(connection: sa.Connection, schema: str | None, name: str) -> _Relation | None:
    if schema not in (None, "main"):
        return None
    row = connection.execute(_SQLITE_RELATION, {"name": name}).one_or_none()
    if row is None:
        return None
    columns = {
        column.name: Column(name=column.name, type="json" if "JSON" in column.type.upper() else "other")
        for column in connection.execute(_SQLITE_COLUMNS, {"name": row.name})
    }
    return _Relation(schema=None, name=row.name, is_table=row.type == "table", row_triggers=False, columns=columns)
