"""Writes of a replica role to the mapped tables of Postgres, for which only triggers fire that fire always."""

from collections.abc import Iterator

import sqlalchemy as sa

from airy_trio.changes import triggers
from airy_trio.changes.tables import Tables
from airy_trio.changes.triggers_postgres import qualified
from airy_trio.check.report import Report
from airy_trio.database import Names

ADVICE = "if clients are to receive them: airy-trio migrate --config FILE --triggers always"
_CATALOGUES = ("pg_subscription_rel", "pg_db_role_setting")
_UNREADABLE = sa.text(
    "select name from unnest(cast(:names as text[])) name where not has_table_privilege(name, 'SELECT') order by name"
)
# The target may be the table itself, a partition of it, or the partitioned table that it is a part of.
_SUBSCRIPTIONS = sa.text(
    """
    select distinct s.subname from pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid
    where r.srrelid = to_regclass(:name)
    or r.srrelid in (select relid from pg_partition_tree(to_regclass(:name)))
    or r.srrelid in (select relid from pg_partition_ancestors(to_regclass(:name)))
    order by 1
    """
)
_SETTINGS = sa.text(
    """
    select case when r.rolname is not null then format('role "%s"', r.rolname)
                when s.setdatabase <> 0 then 'this database' else 'every role' end as place
    from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole
    where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
    and exists (select from unnest(s.setconfig) setting where lower(setting) = 'session_replication_role=replica')
    order by 1
    """
)
_SERVER = sa.text(
    "select source from pg_settings where name = 'session_replication_role' and reset_val = 'replica' "
    "and source not in ('database', 'user', 'database user')"
)


def look(connection: sa.Connection, tables: Tables, names: Names, report: Report, *, deletes: bool) -> None:
    """Report which writes our triggers skip."""
    always = triggers.firing_always(connection, tables, names, deletes=deletes)
    skipping: Tables = {kind: table for kind, table in tables.items() if kind not in always}
    if skipping:
        unreadable = connection.execute(_UNREADABLE, {"names": list(_CATALOGUES)}).scalars().all()
        report.add(
            "note", [f"database: {name} cannot be read, so its replica writes are not known" for name in unreadable]
        )
        if "pg_subscription_rel" not in unreadable:
            report.add("warning", _subscribed(connection, skipping))
        report.add("warning", _set(connection, skipping, own="pg_db_role_setting" not in unreadable))


def _subscribed(connection: sa.Connection, tables: Tables) -> Iterator[str]:
    for kind, table in tables.items():
        for name in connection.execute(_SUBSCRIPTIONS, {"name": qualified(table)}).scalars():
            what = f'the subscription "{name}" writes to "{table.name}", and triggers skip its writes'
            yield f"database.tables.{kind}: {what}; {ADVICE}"


def _set(connection: sa.Connection, tables: Tables, *, own: bool) -> Iterator[str]:
    places = [f"the server's {source}" for source in connection.execute(_SERVER).scalars()]
    places += connection.execute(_SETTINGS).scalars() if own else ()
    for place in places:
        what = f"session_replication_role is replica for {place}, and triggers on {', '.join(tables)} skip its writes"
        yield f"database: {what}; {ADVICE}"
