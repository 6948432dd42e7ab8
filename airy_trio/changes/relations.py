"""What the database has under a name: a table or not, its columns and their types, what makes its rows unique.

Knows the catalogues of both dialects, and nothing of mappings.
"""

from collections import defaultdict
from collections.abc import Mapping

import sqlalchemy as sa
from attrs import frozen

from airy_trio.changes.tables import Column, ColumnType
from airy_trio.database import POSTGRES, quote_identifier

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
    with recursive type(attribute, name, declared, oid, base) as (
        select a.attnum, a.attname, t.oid, t.oid, t.typbasetype
        from pg_attribute a join pg_type t on t.oid = a.atttypid
        where a.attrelid = :oid and a.attnum > 0 and not a.attisdropped
        union all
        select attribute, type.name, declared, t.oid, t.typbasetype from type join pg_type t on t.oid = type.base
    )
    select type.name, declared, format_type(type.oid, -1) as sql_type, t.typname as base_type
    from type join pg_type t on t.oid = type.oid where type.base = 0 order by attribute
    """
)
_SQLITE_RELATION = sa.text(
    "select name, type, sql, sql like 'create virtual %' as virtual from sqlite_master "
    "where type in ('table', 'view') and name = :name collate nocase"
)
_SQLITE_UNIQUE = sa.text(
    """
    select i.name, c.name as column, c.coll as collation
    from pragma_index_list(:table) i, pragma_index_xinfo(i.name) c
    where i."unique" and c.key order by i.name, c.seqno
    """
)
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
class Relation:
    """What the database has under a name. ``unwatchable``: why it cannot be watched, if it cannot.

    ``folded``: names of columns are the same in any case. ``unique``: the columns and collations of unique indexes.
    ``leading``: the columns with which an index over all rows begins. ``definition``: on SQLite the statement that
    makes it.
    """

    schema: str | None
    name: str
    unwatchable: str
    row_triggers: bool
    columns: Mapping[str, Column]
    folded: bool
    unique: tuple[tuple[tuple[str, str], ...], ...] = ()
    leading: frozenset[str] = frozenset()
    definition: str = ""

    def column(self, name: str) -> Column | None:
        """The column of that name."""
        if not self.folded:
            return self.columns.get(name)
        return next((column for key, column in self.columns.items() if key.lower() == name.lower()), None)


def find(connection: sa.Connection, schema: str | None, name: str) -> Relation | None:
    """The relation of that name; without a schema, the one that the name alone means. None where there is none."""
    find_there = _find_postgres if connection.dialect.name == POSTGRES else _find_sqlite
    return find_there(connection, schema, name)


def _find_postgres(connection: sa.Connection, schema: str | None, name: str) -> Relation | None:
    quoted = ".".join(quote_identifier(part) for part in (schema, name) if part is not None)
    row = connection.execute(_POSTGRES_RELATION, {"name": quoted}).one_or_none()
    if row is None:
        return None
    columns = {
        column.name: Column(
            name=column.name,
            type=_POSTGRES_TYPES.get(column.base_type, "other"),
            sql_type=column.sql_type,
            oid=column.declared,
        )
        for column in connection.execute(_POSTGRES_COLUMNS, {"oid": row.oid})
    }
    if row.relkind not in ("r", "p"):
        unwatchable = "is not a table; a view cannot be watched"
    elif row.relkind == "r" and row.has_children:
        unwatchable = "has child tables that inherit from it, whose rows its triggers would not see"
    else:
        unwatchable = ""
    return Relation(
        schema=row.schema,
        name=row.name,
        unwatchable=unwatchable,
        row_triggers=row.relkind == "p" or row.has_parent,
        columns=columns,
        folded=False,
        leading=frozenset(connection.execute(_POSTGRES_LEADING, {"oid": row.oid}).scalars()),
    )


def _find_sqlite(connection: sa.Connection, schema: str | None, name: str) -> Relation | None:
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
    return Relation(
        schema=None,
        name=row.name,
        unwatchable="is a virtual table, which has no triggers" if row.virtual else unwatchable,
        row_triggers=False,
        columns=columns,
        folded=True,
        unique=_sqlite_unique(connection, row.name),
        leading=frozenset(connection.execute(_SQLITE_LEADING, {"table": row.name}).scalars()),
        definition=row.sql,
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
