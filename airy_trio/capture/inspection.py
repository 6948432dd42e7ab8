"""Check the mapping against the tables that really exist, and describe them for the queries and triggers.

``inspect`` finds every mapped table in the catalogue of the database, compares its columns with the mapping, and runs
the queries of the feed once with no keys. It reports all faults together, and each fault names its setting, so that an
operator can correct a settings file in one pass.

An application may alter its tables while a server runs. ``inspect_again`` describes the same tables as they are now.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

import sqlalchemy as sa
from attrs import evolve, frozen
from sqlalchemy.exc import DBAPIError

from airy_trio.capture.feed import Kind, Value
from airy_trio.capture.mapping import (
    FIELDS,
    WATERMARK,
    Column,
    ColumnType,
    MessagesOptions,
    Table,
    TableOptions,
    Tables,
    TablesOptions,
    UniqueIndex,
    quoted_name,
)
from airy_trio.capture.queries import Queries
from airy_trio.database import POSTGRES, is_refusal, quote_identifier, translated
from airy_trio.errors import MappingError

_STORED_AS_TEXT: Final = frozenset({"conversation_id", "channel_id"})
"""The fields, other than keys, that the event log stores in a text column."""
_UNTRANSLATABLE: Final = "22P05"  # SQLSTATE of a character that the server's encoding does not have
_TEXT = sa.text("select cast(:text as text)")
_ROW_SECURITY = sa.text("select current_user, row_security_active(to_regclass(:name))")


def inspect(
    connection: sa.Connection, options: TablesOptions, *, watermarks: bool = False, holds_log: bool = False
) -> Tables:
    """Describe the mapped tables. Raises ``MappingError`` with every fault.

    ``watermarks``: changes are captured by ``updated_at``, so each table needs a column for it.
    ``holds_log``: this database stores the events as well, so its encoding must have every character of their ids.
    """
    faults: list[str] = []
    tables: dict[Kind, Table] = {}
    for kind, mapping in options.mapped.items():
        before = len(faults)
        table = _table(connection, kind, mapping, faults, watermarks=watermarks)
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


def inspect_again(connection: sa.Connection, tables: Tables, *, wheres: bool = False) -> Tables:
    """Describe the same tables as they are now. Raises ``MappingError``, naming the setting of each missing part.

    ``wheres``: try each ``where`` too, if the table can be read without it.
    """
    faults: list[str] = []
    again: dict[Kind, Table] = {}
    for kind, table in tables.items():
        shown = f'database.tables.{kind}: the table "{table.name}"'
        relation = _find(connection, table.schema, table.name)
        if relation is None or relation.unwatchable:
            faults.append(f"{shown} {relation.unwatchable if relation else 'is missing'}")
            continue
        now = {field: relation.column(column.name) for field, column in table.columns.items()}
        columns = {field: column for field, column in now.items() if column is not None}
        gone = sorted(column.name for field, column in table.columns.items() if field not in columns)
        watermark = None
        if table.watermark is not None:
            watermark = relation.column(table.watermark.name)
            gone += [table.watermark.name] if watermark is None else []
        if gone:
            faults.append(f"{shown} is without its columns {', '.join(gone)}")
            continue
        again[kind] = evolve(table, watermark=watermark, **_from_catalogue(relation, columns, kind))
        if wheres and table.where and not _refusal(connection, evolve(again[kind], where="")):
            faults += _where_faults(connection, again[kind])
    if faults:
        raise MappingError(faults)
    return again


def missing_default_tables(connection: sa.Connection, options: TablesOptions) -> list[Kind]:
    """Return the kinds that are mapped to their default table, if that table does not exist."""
    default = (kind for kind, mapping in options.mapped.items() if mapping.name is None)
    return [kind for kind in default if _find(connection, None, kind) is None]


_POSTGRES_RELATION = sa.text(
    """
    select c.oid, n.nspname as schema, c.relname as name, c.relkind,
           exists (select from pg_inherits where inhrelid = c.oid) as has_parent,
           exists (select from pg_inherits where inhparent = c.oid) as has_children
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = to_regclass(:name)
    """
)
# A domain may be based on another domain, so each type is followed down to one that is not a domain.
_POSTGRES_COLUMNS = sa.text(
    """
    with recursive type(attribute, name, virtual, declared, oid, base) as (
        select a.attnum, a.attname, a.attgenerated = 'v', t.oid, t.oid, t.typbasetype
        from pg_attribute a join pg_type t on t.oid = a.atttypid
        where a.attrelid = :oid and a.attnum > 0 and not a.attisdropped
        union all
        select attribute, type.name, virtual, declared, t.oid, t.typbasetype
        from type join pg_type t on t.oid = type.base
    )
    select type.name, virtual, declared, format_type(type.oid, -1) as sql_type, t.typname as base_type
    from type join pg_type t on t.oid = type.oid where type.base = 0 order by attribute
    """
)
_POSTGRES_NAMES = sa.text(
    """
    select case when pg_table_is_visible(c.oid) then c.relname else n.nspname || '.' || c.relname end
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' order by 1
    """
)
_SQLITE_NAMES = sa.text("select name from sqlite_master where type = 'table' order by 1")
_SQLITE_RELATION = sa.text(
    "select name, type, sql, sql like 'create virtual %' as virtual from sqlite_master "
    "where type in ('table', 'view') and name = :name collate nocase"
)
# SQLite returns an expression in an index as a column without a name.
_SQLITE_UNIQUE = sa.text(
    """
    select i.name, c.name as column, c.coll as collation
    from pragma_index_list(:table) i, pragma_index_xinfo(i.name) c
    where i."unique" and c.key
    and not exists (select 1 from pragma_index_xinfo(i.name) x where x.key and x.name is null)
    order by i.name, c.seqno
    """
)
# A partial index, or one with another collation than its column, does not serve a look-up by that column.
_POSTGRES_LEADING = sa.text(
    """
    select a.attname from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = :oid and i.indisvalid and i.indpred is null and m.amname in ('btree', 'hash')
    and i.indcollation[0] in (0, a.attcollation)
    """
)
_SQLITE_LEADING = sa.text(
    "select c.name from pragma_index_list(:table) i, pragma_index_xinfo(i.name) c "
    "where c.seqno = 0 and not i.partial and c.name is not null"
)
_SQLITE_PRIMARY_KEY = sa.text("select name, lower(type) as type from pragma_table_xinfo(:table) where pk")
# ``hidden`` is 2 or 3 for a generated column, which can be read like others, and 1 only in virtual tables.
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
    """A table or view as the database's catalogue describes it.

    ``unwatchable`` is the reason why it cannot be watched, or "". ``ignores_case``: names of columns match in any case.
    ``unique``: its unique indexes (SQLite). ``leading``: the first columns of the indexes over all rows.
    ``definition``: the statement that creates it (SQLite). ``oid``: its number in the catalogue (Postgres).
    """

    schema: str | None
    name: str
    unwatchable: str
    row_triggers: bool
    columns: Mapping[str, Column]
    ignores_case: bool
    unique: tuple[UniqueIndex, ...] = ()
    leading: frozenset[str] = frozenset()
    definition: str = ""
    oid: int = 0

    def column(self, name: str) -> Column | None:
        if not self.ignores_case:
            return self.columns.get(name)
        return next((column for key, column in self.columns.items() if key.lower() == name.lower()), None)


def _find(connection: sa.Connection, schema: str | None, name: str) -> _Relation | None:
    """Return the relation of that name, or None. A name without schema is resolved by the search path."""
    find = _find_postgres if connection.dialect.name == POSTGRES else _find_sqlite
    return find(connection, schema, name)


def _find_postgres(connection: sa.Connection, schema: str | None, name: str) -> _Relation | None:
    row = connection.execute(_POSTGRES_RELATION, {"name": quoted_name(schema, name)}).one_or_none()
    if row is None:
        return None
    columns = {
        column.name: Column(
            name=column.name,
            type=_POSTGRES_TYPES.get(column.base_type, "other"),
            sql_type=column.sql_type,
            oid=column.declared,
            virtual=column.virtual,
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
        ignores_case=False,
        leading=frozenset(connection.execute(_POSTGRES_LEADING, {"oid": row.oid}).scalars()),
        oid=row.oid,
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
        ignores_case=True,
        unique=_sqlite_unique(connection, row.name),
        leading=frozenset(connection.execute(_SQLITE_LEADING, {"table": row.name}).scalars()),
        definition=row.sql,
    )


def _sqlite_unique(connection: sa.Connection, table: str) -> tuple[UniqueIndex, ...]:
    """Return the unique indexes of a table, except those over SQL expressions."""
    indexes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in connection.execute(_SQLITE_UNIQUE, {"table": table}):
        indexes[row.name].append((row.column, row.collation))
    unique: list[UniqueIndex] = [tuple(columns) for columns in indexes.values()]
    primary = connection.execute(_SQLITE_PRIMARY_KEY, {"table": table}).all()
    if len(primary) == 1 and primary[0].type == "integer":  # This column is the row's number, which has no index.
        unique.append(((primary[0].name, "BINARY"),))
    return tuple(unique)


def _table(
    connection: sa.Connection, kind: Kind, options: TableOptions, faults: list[str], *, watermarks: bool
) -> Table | None:
    setting, location = f"database.tables.{kind}", options.location(kind)
    shown = ".".join(part for part in location if part)
    relation = _find(connection, *location)
    if relation is None:
        faults.append(
            f'{setting}.name: there is no table "{shown}" in the database{_perhaps(connection, shown)} (name the '
            'application\'s table, or "" if it has none; `airy-trio migrate --with-tables` makes our default tables)'
        )
        return None
    if relation.unwatchable:
        faults.append(f'{setting}.name: "{shown}" {relation.unwatchable}')
        return None
    columns = _columns(kind, options, relation, faults)
    if not watermarks:
        faults += _virtual_faults(kind, relation, columns)
    constants: dict[str, Value] = {f.name: None for f in FIELDS[kind] if f.name not in columns}
    constants |= options.constants
    keys = [f for f in FIELDS[kind] if f.key]
    if all(f.name in options.constants or (f.optional and f.name not in columns) for f in keys):
        names = " and ".join(f.name for f in keys)
        faults.append(f"{setting}.constants: without a column for {names} rows cannot be distinguished")
    return Table(
        kind=kind,
        schema=relation.schema,
        constants=constants,
        values=options.values,
        where=options.where,
        time_zone=options.time_zone,
        content_form=options.content if isinstance(options, MessagesOptions) else "auto",
        watermark=_watermark(kind, options, relation, faults) if watermarks else None,
        **_from_catalogue(relation, columns, kind),
    )


def _from_catalogue(relation: _Relation, columns: Mapping[str, Column], kind: Kind) -> dict[str, Any]:
    """Return the attributes of a ``Table`` that only the database decides.

    ``unique``: ``INSERT OR REPLACE`` may delete a row of another key by one of these indexes. An index that contains
    the whole key cannot do that: rows that are equal in it have the same key. That holds only if it compares the key
    exactly, not for example without case.
    """
    keys = {columns[field.name].name for field in FIELDS[kind] if field.key and field.name in columns}
    return {
        "name": relation.name,  # SQLite ignores the case of names, and a migration may change it
        "columns": columns,
        "row_triggers": relation.row_triggers,
        "unique": tuple(
            index for index in relation.unique if not keys <= {name for name, how in index if how == "BINARY"}
        ),
        "by_conversation": "conversation_id" in columns and columns["conversation_id"].name in relation.leading,
        "definition": relation.definition,
        "oid": relation.oid,
    }


def _watermark(kind: Kind, options: TableOptions, relation: _Relation, faults: list[str]) -> Column | None:
    setting = f"database.tables.{kind}"
    if WATERMARK in options.constants:
        faults.append(f'{setting}.constants.{WATERMARK}: changes.capture = "updated_at" needs a column for it')
        return None
    name = options.columns.get(WATERMARK, WATERMARK)
    column = relation.column(name)
    if column is None:
        faults.append(
            f'{setting}.columns.{WATERMARK}: changes.capture = "updated_at" needs a column with the time of a row\'s '
            f'last change, and "{relation.name}" has no "{name}" (columns: {", ".join(sorted(relation.columns))})'
        )
    return column


def _perhaps(connection: sa.Connection, shown: str) -> str:
    """Return a hint that names the most similar table, which may differ only in case or be in another schema."""
    names = _POSTGRES_NAMES if connection.dialect.name == POSTGRES else _SQLITE_NAMES
    return _hint(shown, connection.execute(names).scalars().all())


def _hint(name: str, others: Collection[str]) -> str:
    near = get_close_matches(name, others, n=1)
    return f', perhaps "{near[0]}"' if near else ""


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
            faults.append(
                f'database.tables.{kind}.columns.{field.name}: table "{relation.name}" has no column "{name}"'
                f"{_hint(name, relation.columns)} (columns: {', '.join(sorted(relation.columns))})"
            )
    return columns


def _virtual_faults(kind: Kind, relation: _Relation, columns: Mapping[str, Column]) -> Iterator[str]:
    """Yield a fault for each virtual column that triggers would log: Postgres would reject the application's writes.

    On SQLite triggers can read such columns.
    """
    for field in FIELDS[kind]:
        if (field.key or field.carried) and field.name in columns and columns[field.name].virtual:
            yield (
                f'database.tables.{kind}.columns.{field.name}: "{columns[field.name].name}" of "{relation.name}" is a '
                "virtual generated column, which triggers cannot read; create it as STORED, or map another column"
            )


def _reading_faults(connection: sa.Connection, table: Table) -> Iterator[str]:
    """Yield a fault if the table cannot be read as mapped: a missing right, or a ``where`` that is not a condition."""
    setting = f"database.tables.{table.kind}"
    without_where = _refusal(connection, evolve(table, where=""))
    if without_where:
        reason = _row_security(connection, table) or f"cannot be read: {without_where}"
        yield f'{setting}.name: "{table.name}" {reason}'
    else:
        yield from _where_faults(connection, table)


def _where_faults(connection: sa.Connection, table: Table) -> Iterator[str]:
    """Yield a fault if a table that can be read without its ``where`` cannot be read with it."""
    if table.where and (refusal := _refusal(connection, table)):
        setting = f"database.tables.{table.kind}.where"
        yield f'{setting}: not a condition over the columns of "{table.name}": {refusal}'


def _encoding_faults(connection: sa.Connection, kind: Kind, options: TableOptions) -> Iterator[str]:
    """Yield a fault for each text of the mapping that becomes an id of an event and that this database cannot store.

    All other ids come from this database, and the rest of an event is stored as octets.
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
                    f"{encoding}, lacks; use another text, or store the event log elsewhere (log.url)"
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


def _row_security(connection: sa.Connection, table: Table) -> str:
    """Return how to lift row level security that applies to our role; "" if none does.

    Connections run with ``row_security = off``, so that a query fails instead of omitting rows silently.
    """
    if connection.dialect.name != POSTGRES:
        return ""
    role, is_active = connection.execute(_ROW_SECURITY, {"name": table.quoted}).one()
    if not is_active:
        return ""
    return (
        f'is under row level security, which would hide rows from the role "{role}"; as a superuser: '
        f"ALTER ROLE {quote_identifier(role)} BYPASSRLS, or connect as the table's owner (without FORCE ROW LEVEL "
        "SECURITY)"
    )


def _refusal(connection: sa.Connection, table: Table) -> str:
    """Run the feed's queries without keys and return the reason if the database rejects them, otherwise ""."""
    # In a savepoint, because on Postgres a refused statement aborts the transaction, in which the other tables are
    # still to be inspected. The savepoint is always rolled back, because that releases the table. If this table stayed
    # locked, a migration of the application that has locked the next one and needs this one would end in a deadlock.
    try:
        with connection.begin_nested() as trial:
            Queries(connection.dialect.name, table).try_out(connection)
            trial.rollback()
    except DBAPIError as error:
        if not is_refusal(error):
            raise
        return str(translated(error))
    return ""
