"""Does the mapping fit the tables that are really there? All faults at once, each naming its setting."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

import sqlalchemy as sa
from attrs import evolve, frozen
from sqlalchemy.exc import DBAPIError

from airy_trio.changes.queries import Queries
from airy_trio.changes.rows import Value
from airy_trio.changes.tables import FIELDS, Column, ColumnType, Kind, Table, TableOptions, Tables, TablesOptions
from airy_trio.database import POSTGRES, DatabaseRefused, quote_identifier, translated
from airy_trio.errors import MappingError

_POSTGRES_RELATION = sa.text(
    """
    select c.oid, n.nspname as schema, c.relname as name, c.relkind,
           exists (select from pg_inherits where inhrelid = c.oid) as has_parent,
           exists (select from pg_inherits where inhparent = c.oid) as has_children
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = to_regclass(:name)
    """
)
_POSTGRES_COLUMNS = sa.text(
    """
    with recursive type(attribute, name, oid, base) as (
        select a.attnum, a.attname, t.oid, t.typbasetype
        from pg_attribute a join pg_type t on t.oid = a.atttypid
        where a.attrelid = :oid and a.attnum > 0 and not a.attisdropped
        union all
        select attribute, type.name, t.oid, t.typbasetype from type join pg_type t on t.oid = type.base
    )
    select type.name, format_type(type.oid, -1) as sql_type, t.typname as base_type
    from type join pg_type t on t.oid = type.oid where type.base = 0 order by attribute
    """
)
_SQLITE_RELATION = sa.text(
    "select name, type, sql like 'create virtual %' as virtual from sqlite_master "
    "where type in ('table', 'view') and name = :name collate nocase"
)
_SQLITE_UNIQUE = sa.text(
    """
    select i.name, c.name as column, c.coll as collation
    from pragma_index_list(:table) i, pragma_index_xinfo(i.name) c
    where i."unique" and c.key order by i.name, c.seqno
    """
)
_SQLITE_PRIMARY_KEY = sa.text("select name, lower(type) as type from pragma_table_xinfo(:table) where pk")
_SQLITE_COLUMNS = sa.text("select name, type from pragma_table_xinfo(:name) where hidden <> 1")
_POSTGRES_TYPES: Mapping[str, ColumnType] = {
    "json": "json",
    "jsonb": "json",
    "timestamptz": "timestamptz",
    "timestamp": "timestamp",
    "date": "timestamp",
    "float4": "float",
    "float8": "float",
    "numeric": "numeric",
    "int2": "integer",
    "int4": "integer",
    "int8": "integer",
    "uuid": "uuid",
    "text": "text",
    "varchar": "text",
    "bpchar": "text",
    "citext": "text",
}


@frozen(kw_only=True)
class _Relation:
    """What the database has under a name. ``unwatchable``: why it cannot be watched, if it cannot.

    ``folded``: names of columns are the same in any case. ``unique``: the columns and collations of unique indexes.
    """

    schema: str | None
    name: str
    unwatchable: str
    row_triggers: bool
    columns: Mapping[str, Column]
    folded: bool
    unique: tuple[tuple[tuple[str, str], ...], ...] = ()

    def column(self, name: str) -> Column | None:
        """The column of that name."""
        if not self.folded:
            return self.columns.get(name)
        return next((column for key, column in self.columns.items() if key.lower() == name.lower()), None)


def inspect(connection: sa.Connection, options: TablesOptions) -> Tables:
    """Find the mapped tables. Raises ``MappingError`` with every fault."""
    faults: list[str] = []
    tables: dict[Kind, Table] = {}
    for kind, mapping in options.items():
        location = mapping.location(kind)
        if location is not None:
            before = len(faults)
            table = _table(connection, kind, mapping, location, faults)
            if table is not None and len(faults) == before:
                faults += _reading_faults(connection, table)
                tables[kind] = table
    if not faults and not tables:
        faults.append("database.tables: every table is mapped to nothing, so there is nothing to watch")
    if faults:
        raise MappingError(faults)
    return tables


def inspect_again(connection: sa.Connection, tables: Tables) -> Tables:
    """The same tables as they are now. Raises ``MappingError`` where one of them or a column of it is gone."""
    faults: list[str] = []
    again: dict[Kind, Table] = {}
    for kind, table in tables.items():
        relation = _find(connection, table.schema, table.name)
        columns = [column.name for column in table.columns.values()]
        gone = [name for name in columns if relation is None or relation.column(name) is None]
        if relation is None or relation.unwatchable or gone:
            faults.append(f'table "{table.name}" ({kind}) is not there any more with its columns {", ".join(columns)}')
        else:
            again[kind] = evolve(table, unique=_replacing(relation, table.columns, kind))
    if faults:
        raise MappingError(faults)
    return again


def absent(connection: sa.Connection, options: TablesOptions) -> list[Kind]:
    """The kinds whose table has our own name and is not there."""
    return [kind for kind, mapping in options.items() if mapping.name is None and _find(connection, None, kind) is None]


def _table(
    connection: sa.Connection, kind: Kind, options: TableOptions, location: tuple[str | None, str], faults: list[str]
) -> Table | None:
    setting = f"database.tables.{kind}"
    shown = ".".join(part for part in location if part)
    relation = _find(connection, *location)
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
        row_triggers=relation.row_triggers,
        unique=_replacing(relation, columns, kind),
    )


def _replacing(
    relation: _Relation, columns: Mapping[str, Column], kind: Kind
) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The unique indexes by which a row may replace one of another key."""
    keys = {columns[field.name].name for field in FIELDS[kind] if field.key and field.name in columns}
    return tuple(index for index in relation.unique if not keys <= {name for name, how in index if how == "BINARY"})


def _columns(kind: Kind, options: TableOptions, relation: _Relation, faults: list[str]) -> Mapping[str, Column]:
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
        yield f'{setting}.name: "{table.name}" cannot be read: {without_where}'
    elif table.where and (refusal := _refusal(connection, table)):
        yield f'{setting}.where: not a condition over the columns of "{table.name}": {refusal}'


def _refusal(connection: sa.Connection, table: Table) -> str:
    try:
        with connection.begin_nested():
            Queries(connection.dialect.name, table).try_out(connection)
    except DBAPIError as error:
        told = translated(error)
        if not isinstance(told, DatabaseRefused):
            raise
        return str(told)
    return ""


def _find(connection: sa.Connection, schema: str | None, name: str) -> _Relation | None:
    find = _find_postgres if connection.dialect.name == POSTGRES else _find_sqlite
    return find(connection, schema, name)


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
    if row.relkind not in ("r", "p"):
        unwatchable = "is not a table; a view cannot be watched"
    elif row.relkind == "r" and row.has_children:
        unwatchable = "has child tables that inherit from it, whose rows its triggers would not see"
    else:
        unwatchable = ""
    return _Relation(
        schema=row.schema,
        name=row.name,
        unwatchable=unwatchable,
        row_triggers=row.relkind == "p" or row.has_parent,
        columns=columns,
        folded=False,
    )


def _find_sqlite(connection: sa.Connection, schema: str | None, name: str) -> _Relation | None:
    if schema is not None and schema.lower() != "main":
        return None
    row = connection.execute(_SQLITE_RELATION, {"name": name}).one_or_none()
    if row is None:
        return None
    columns = {
        column.name: Column(name=column.name, type="json" if "JSON" in column.type.upper() else "other")
        for column in connection.execute(_SQLITE_COLUMNS, {"name": row.name})
    }
    unwatchable = "is not a table; a view cannot be watched" if row.type != "table" else ""
    return _Relation(
        schema=None,
        name=row.name,
        unwatchable="is a virtual table, which has no triggers" if row.virtual else unwatchable,
        row_triggers=False,
        columns=columns,
        folded=True,
        unique=_sqlite_unique(connection, row.name),
    )


def _sqlite_unique(connection: sa.Connection, table: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Columns and collations of each unique index, that of an integer primary key included; not those over SQL."""
    indexes: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
    for row in connection.execute(_SQLITE_UNIQUE, {"table": table}):
        indexes[row.name].append((row.column, row.collation))
    found = [tuple((name, coll) for name, coll in columns if name is not None) for columns in indexes.values()]
    whole = [some for some, all_ in zip(found, indexes.values(), strict=True) if len(some) == len(all_)]
    primary = connection.execute(_SQLITE_PRIMARY_KEY, {"table": table}).all()
    if len(primary) == 1 and primary[0].type == "integer":  # the row's number itself, which is no index
        whole.append(((primary[0].name, "BINARY"),))
    return tuple(whole)
