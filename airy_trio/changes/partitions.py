"""Partitions that join or leave a mapped table of Postgres while a server runs, of which no trigger tells.

ATTACH PARTITION makes the rows of a table rows of the mapped table, and DETACH or DROP takes them away, without a write
to any row. So the partitions are compared with those of the last look, and a line of the log names those whose rows
were not sent.

A partition that was made as one (CREATE TABLE … PARTITION OF) has had our triggers from its beginning; whatever rows it
has were recorded. It is told from one that was attached by the catalogue's rows for its columns: ATTACH writes those of
all user columns again, while CREATE writes them together with those of the system columns, except for columns with a
default. Which command of which transaction wrote a row is in its ``cmin`` and ``xmin``. In case of doubt a partition
counts as attached: a line too many is better than rows that are lost silently.
"""

from collections.abc import Collection, Mapping

import sqlalchemy as sa
import structlog
from attrs import field, frozen

from airy_trio.changes.tables import Kind, Table, Tables
from airy_trio.changes.triggers_postgres import qualified
from airy_trio.database import quote_identifier

logger = structlog.get_logger(__name__)

_ROOT = sa.text("select cast(to_regclass(:name) as oid)")
_MEMBERS = sa.text(
    """
    with recursive member(oid, parent, joined) as (
        select inhrelid, inhparent, xmin from pg_inherits where inhparent = :root and not inhdetachpending
        union all
        select i.inhrelid, i.inhparent, i.xmin
        from member join pg_inherits i on i.inhparent = member.oid where not i.inhdetachpending
    )
    select member.oid, member.parent, cast(member.joined as text) as joined,
           format('%I.%I', n.nspname, c.relname) as name, c.relkind <> 'p' as holds_rows
    from member join pg_class c on c.oid = member.oid join pg_namespace n on n.oid = c.relnamespace
    """
)
_ATTACHED = sa.text(
    """
    select c.oid from pg_class c where c.oid = any(:oids) and not exists (
        select from pg_attribute a join pg_attribute first on first.attrelid = a.attrelid and first.attnum = -1
        where a.attrelid = c.oid and a.attnum > 0 and a.xmin = first.xmin and a.cmin = first.cmin
    )
    """
)
_EMPTY = sa.text("select oid from unnest(cast(:oids as oid[])) oid where pg_relation_size(oid) = 0")


@frozen
class _Partition:
    """A partition at any depth. ``joined``: the transaction in which it became one."""

    oid: int
    parent: int
    joined: str
    name: str = field(eq=False)
    holds_rows: bool


class Partitions:
    """The partitions of the mapped tables at the last look. ``deletes``: whether deleted messages are events."""

    def __init__(self, *, deletes: bool) -> None:
        self._deletes = deletes
        self._known: Mapping[int, Collection[_Partition]] = {}

    def look(self, connection: sa.Connection, tables: Tables) -> None:
        """Log which partitions joined or left with rows since the last look. The first look at a table logs nothing."""
        known: dict[int, Collection[_Partition]] = {}
        for kind, table in tables.items():
            if table.row_triggers:
                root = connection.execute(_ROOT, {"name": qualified(table)}).scalar_one()
                known[root] = {_Partition(*row) for row in connection.execute(_MEMBERS, {"root": root})}
                if root in self._known:
                    self._compare(connection, kind, table, self._known[root], known[root])
        self._known = known

    def _compare(
        self,
        connection: sa.Connection,
        kind: Kind,
        table: Table,
        before: Collection[_Partition],
        now: Collection[_Partition],
    ) -> None:
        joined = {partition.oid: partition for partition in now if partition not in before}
        there = {partition.oid for partition in now}
        left = {partition.oid: partition for partition in before if partition.oid not in there}
        if not joined and not left:
            return
        empty = set(connection.execute(_EMPTY, {"oids": [*joined, *left]}).scalars())
        attached = set(connection.execute(_ATTACHED, {"oids": [*joined]}).scalars())
        for partition in joined.values():
            if partition.holds_rows and partition.oid not in empty and _is_within(partition, attached, joined):
                key = quote_identifier(table.keys[0].name)
                logger.warning(
                    "a partition was attached with rows, which are not sent; an UPDATE sends them",
                    table=table.name,
                    partition=partition.name,
                    statement=f"update {partition.name} set {key} = {key}",  # noqa: S608 - names quoted
                )
        for partition in left.values():
            if partition.holds_rows and partition.oid not in empty and (self._deletes or kind != "messages"):
                logger.warning(
                    "a partition was detached or dropped; its rows are not sent as deleted",
                    table=table.name,
                    partition=partition.name,
                )


def _is_within(partition: _Partition, attached: Collection[int], joined: Mapping[int, _Partition]) -> bool:
    """Whether a partition was attached itself, or belongs to one that was attached since the last look."""
    while partition.oid not in attached:
        if partition.parent not in joined:
            return False
        partition = joined[partition.parent]
    return True
