"""Postgres: the change log in the order of transaction and time, without a sequence.

Our sequence changed what ``lastval()`` returns to the application, and a second index slowed its writes.
"""

import time

import sqlalchemy as sa
from alembic import context, op

revision = "changes_0005"
down_revision = "changes_0004"

# For all locks together. The writers of the first table wait meanwhile, and one of them may hold the lock of the last:
# after a second Postgres would end it as a deadlock.
LOCK_WAIT_MAX_S = 0.5
# Without the partitions: a lock on the root locks them too, after it, which is also the order of a writer.
_WATCHED = sa.text(
    """
    select distinct cast(cast(t.tgrelid as regclass) as text) as name
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = :schema and not t.tgisinternal and t.tgparentid = 0 order by name
    """
)


def upgrade() -> None:
    """Drop ``seq`` with its sequence, and the sequence ``lastval``; create an index on ``txid`` and ``at``.

    Without a key, a database that publishes all its tables needs the whole row to replicate a deletion.
    """
    if op.get_context().dialect.name != "postgresql":
        return
    names = context.config.attributes["names"]
    log, bare = names.quoted("change_log"), names.bare("change_log")
    watched = op.get_bind().execute(_WATCHED, {"schema": names.schema}).scalars().all()
    before = op.get_bind().execute(sa.text("show lock_timeout")).scalar_one()
    deadline = time.monotonic() + LOCK_WAIT_MAX_S
    # The tables first: a writer locks its table, and then the change log, so the other order would end in a deadlock.
    for name, mode in (*((table, "share row exclusive") for table in watched), (log, "access exclusive")):
        left_ms = max(1, round((deadline - time.monotonic()) * 1000))  # 0 would be no limit
        op.execute(f"set local lock_timeout = {left_ms}")
        escaped = name.replace(":", "\\:")  # otherwise the name of a parameter
        op.execute(f"lock table {escaped} in {mode} mode")
    op.execute(f"set local lock_timeout = '{before}'")
    op.drop_column(bare, "seq", schema=names.table_schema)
    op.execute(f"drop sequence if exists {names.quoted('lastval')}")
    op.drop_index("change_log_txid", bare, schema=names.table_schema)
    op.create_index("change_log_order", bare, ["txid", "at"], schema=names.table_schema)
    op.execute(f"alter table {log} replica identity full")
    _compatible_from(revision)


def downgrade() -> None:
    """Restore ``seq``."""
    if op.get_context().dialect.name != "postgresql":
        return
    names = context.config.attributes["names"]
    log, bare = names.quoted("change_log"), names.bare("change_log")
    op.execute(f"alter table {log} replica identity default")
    op.drop_index("change_log_order", bare, schema=names.table_schema)
    op.create_index("change_log_txid", bare, ["txid"], schema=names.table_schema)
    op.execute(f"alter table {log} add column seq bigint generated always as identity (cache 1) primary key")
    _compatible_from("changes_0002")


def _compatible_from(oldest: str) -> None:
    names = context.config.attributes["names"]
    state = names.quoted("change_state")
    op.execute(f"update {state} set compatible_from = '{oldest}'")  # noqa: S608 - both are ours
    op.execute(f"alter table {state} alter column compatible_from set default '{oldest}'")
