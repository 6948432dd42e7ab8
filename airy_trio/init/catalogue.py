"""Read a database: its tables with their columns, keys and references, and some of their rows. Changes nothing.

Only tables that can be watched and that the role may read are found: no views, no partitions (their parent is found),
no tables with child tables that inherit from them, no tables of extensions, of frameworks or of our own.
"""

import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, Literal

import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from airy_trio.capture.feed import Value
from airy_trio.capture.mapping import quoted_name
from airy_trio.check.rows import bounded
from airy_trio.database import POSTGRES, Names, escape_colons, is_refusal, quote_identifier

Family = Literal["text", "json", "time", "flag", "integer", "number", "uuid", "other"]
"""What a column can hold, for both dialects."""

ROWS_MAX: Final = 200
TEXT_CHARS_MAX: Final = 200
"""How many rows are read to learn the values of a table's columns, and how much of each text."""

_POSTGRES_TABLES = sa.text(
    r"""
    select n.nspname as schema, c.relname as name, pg_table_is_visible(c.oid) as visible
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and not c.relispartition
    and (c.relkind = 'p' or not exists (select from pg_inherits i where i.inhparent = c.oid))
    and n.nspname not like 'pg\_%' and n.nspname not in ('information_schema', :ours)
    and has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT')
    and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
    order by 1, 2
    """
)
_SQLITE_TABLES = sa.text(
    r"select name, sql like 'create virtual %' as virtual from sqlite_master "
    r"where type = 'table' and name not like 'sqlite\_%' escape '\' order by 1"
)
_FRAMEWORKS: Final = re.compile(
    r"(auth|django|active_storage|action_text|action_mailbox|solid|oauth|good_job|que|oban|sqlx?)_.*"
    r"|authtoken_token|schema_migrations|ar_internal_metadata|alembic_version|_?prisma_migrations|flyway_.*"
    r"|knex_migrations.*|migrations|databasechangelog.*|delayed_jobs|sessions"
)


@frozen(kw_only=True)
class FoundColumn:
    """A column. ``target``: the table that a foreign key on it refers to. ``labels``: of an enumerated type.

    ``bits``: how the database writes yes and no in this column.
    """

    name: str
    family: Family
    bits: tuple[str, str] = ("1", "0")
    target: str | None = None
    labels: tuple[str, ...] = ()


@frozen(kw_only=True)
class FoundTable:
    """A table. ``schema``: None on SQLite. ``visible``: its name alone is enough.

    ``key``: the column that identifies a row; None if there is no such single column.
    """

    schema: str | None = None
    name: str
    visible: bool = True
    columns: Mapping[str, FoundColumn]
    key: str | None

    @property
    def label(self) -> str:
        """The name as it is printed, which is unique."""
        return self.name if self.visible else f"{self.schema}.{self.name}"


Row = Mapping[str, Value]
"""The beginning of each value of a row, by column; as text on Postgres."""


def look(connection: sa.Connection, names: Names) -> Sequence[FoundTable]:
    """Find the tables. ``names``: of our own, which are left out."""
    if connection.dialect.name == POSTGRES:
        rows = [
            (row.schema, row.name, row.visible) for row in connection.execute(_POSTGRES_TABLES, {"ours": names.schema})
        ]
    else:
        rows = [(None, name, True) for name in _sqlite_names(connection, names)]
    # The settings accept no name with control characters.
    wanted = [row for row in rows if row[1].isprintable() and not _FRAMEWORKS.fullmatch(row[1])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)  # types that SQLAlchemy does not know are "other"
        by_schema = groupby(wanted, key=lambda row: row[0])
        return [
            table
            for schema, found in by_schema
            for table in _tables(sa.inspect(connection), schema, {name: visible for _, name, visible in found})
        ]


def sample(connection: sa.Connection, table: FoundTable) -> Sequence[Row]:
    """Read some rows, those with the largest keys. Empty if that takes too long or is refused."""
    columns = [_beginning(connection, column.name) for column in table.columns.values()]
    order = f" order by t.{quote_identifier(table.key)} desc" if table.key is not None else ""
    name = quoted_name(table.schema, table.name)
    sql = f"select {', '.join(columns)} from {name} t{order} limit {ROWS_MAX}"  # noqa: S608 - names quoted
    try:
        with bounded(connection):
            rows = connection.execute(sa.text(escape_colons(sql))).all()
            return [dict(zip(table.columns, row, strict=True)) for row in rows]
    except DBAPIError as error:
        if not is_refusal(error):
            raise
    return ()


def _beginning(connection: sa.Connection, name: str) -> str:
    column = f"t.{quote_identifier(name)}"
    if connection.dialect.name == POSTGRES:
        return f"left(cast({column} as text), {TEXT_CHARS_MAX})"
    return f"case typeof({column}) when 'text' then substr({column}, 1, {TEXT_CHARS_MAX}) else {column} end"


def _sqlite_names(connection: sa.Connection, names: Names) -> Iterator[str]:
    """Return the names of tables, without virtual tables and the tables in which these store their rows."""
    rows = connection.execute(_SQLITE_TABLES).all()
    others = (f"{names.schema}_", *(f"{row.name}_" for row in rows if row.virtual))
    return (row.name for row in rows if not row.virtual and not row.name.startswith(others))


def _tables(inspector: Inspector, schema: str | None, names: Mapping[str, bool]) -> Iterator[FoundTable]:
    """Describe tables of one schema. ``names``: each with whether the search path finds it."""
    which = list(names)
    columns = inspector.get_multi_columns(schema, filter_names=which)
    keys = inspector.get_multi_pk_constraint(schema, filter_names=which)
    unique = inspector.get_multi_unique_constraints(schema, filter_names=which)
    references = inspector.get_multi_foreign_keys(schema, filter_names=which)
    is_postgres = inspector.dialect.name == POSTGRES
    for place, described in columns.items():
        targets = {
            one["constrained_columns"][0]: one["referred_table"]
            for one in references.get(place, ())
            if len(one["constrained_columns"]) == 1
        }
        found = {
            column["name"]: FoundColumn(
                name=column["name"],
                family=(family := _family(column["type"])),
                bits=("true", "false") if is_postgres and family == "flag" else ("1", "0"),
                target=targets.get(column["name"]),
                labels=tuple(getattr(column["type"], "enums", ())),
            )
            for column in described
        }
        primary = keys[place]["constrained_columns"] if keys.get(place) else []
        singles = [one["column_names"][0] for one in unique.get(place, ()) if len(one["column_names"]) == 1]
        yield FoundTable(
            schema=schema, name=place[1], visible=names[place[1]], columns=found, key=_key(primary, singles)
        )


def _key(primary: Sequence[str], unique: Collection[str | None]) -> str | None:
    """Return the column that identifies a row. The key of a partitioned table often is an id and a time."""
    if len(primary) == 1:
        return primary[0]
    names = [*(name for name in unique if name is not None), *(name for name in primary if name == "id")]
    return names[0] if names else None


def _family(type_: "TypeEngine[object]") -> Family:
    families: tuple[tuple[tuple[type, ...], Family], ...] = (
        ((sa.Boolean,), "flag"),
        ((sa.JSON,), "json"),
        ((sa.DateTime, sa.Date), "time"),
        ((sa.Uuid,), "uuid"),
        ((sa.Integer,), "integer"),
        ((sa.Numeric,), "number"),
        ((sa.String,), "text"),
    )
    inner = type_.data_type if isinstance(type_, postgresql.DOMAIN) else type_
    return next((family for classes, family in families if isinstance(inner, classes)), "other")
