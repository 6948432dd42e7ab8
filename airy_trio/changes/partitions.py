"""Partitions that join or leave a mapped table of Postgres while a server runs, of which no trigger reports anything.

ATTACH PARTITION makes the rows of a table rows of the mapped table, and DETACH or DROP removes them, without a write to
any row. So the partitions are compared with those of the last look, and a log line names those whose rows may not have
been sent. A partition that was created as one and was filled since the last look gets such a line too: the catalogue
does not say how a partition became one, and a line too many is better than rows that are lost silently.
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
    with recursive member(oid, joined) as (
        select inhrelid, xmin from pg_inherits where inhparent = :root and not inhdetachpending
        union all
        select i.inhrelid, i.xmin
        from member join pg_inherits i on i.inhparent = member.oid where not i.inhdetachpending
    )
    select member.oid, cast(member.joined as text) as joined,
           format('%I.%I', n.nspname, c.relname) as name, c.relkind <> 'p' as holds_rows
    from member join pg_class c on c.oid = member.oid join pg_namespace n on n.oid = c.relnamespace
    """
)
_EMPTY = sa.text("select oid from unnest(cast(:oids as oid[])) oid where pg_relation_size(oid) = 0")


@frozen
class _Partition:
    """A partition at any depth. ``joined``: the transaction in which it became one."""

    oid: int
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
        joined = [partition for partition in now if partition not in before]
        there = {partition.oid for partition in now}
        left = [partition for partition in before if partition.oid not in there]
        if not joined and not left:
            return
        oids = [partition.oid for partition in (*joined, *left)]
        empty = set(connection.execute(_EMPTY, {"oids": oids}).scalars())
        for partition in joined:
            if partition.holds_rows and partition.oid not in empty:
                key = quote_identifier(table.keys[0].name)
                logger.warning(
                    "a partition with rows has joined; rows written before that are not sent, an UPDATE sends them",
                    table=table.name,
                    partition=partition.name,
                    statement=f"update {partition.name} set {key} = {key}",  # noqa: S608 - names quoted
                )
        for partition in left:
            if partition.holds_rows and partition.oid not in empty and (self._deletes or kind != "messages"):
                logger.warning(
                    "a partition was detached or dropped; its rows are not sent as deleted",
                    table=table.name,
                    partition=partition.name,
                )
