"""The change log and its state, in the application's database."""

import sqlalchemy as sa
from alembic import context, op

revision = "changes_0001"
down_revision = None


def upgrade() -> None:
    """Create ``change_log`` and ``change_state``.

    On Postgres the sequence must not cache values: for each object, ``seq`` must grow in the order in which its row was
    locked. On SQLite the key columns have no type, so keys keep the type of the application's table.
    """
    names = context.config.attributes["names"]
    schema = names.table_schema
    if op.get_context().dialect.name == "postgresql":
        op.create_table(
            names.bare("change_log"),
            sa.Column("seq", sa.BigInteger, sa.Identity(always=True, cache=1), primary_key=True),
            sa.Column("txid", sa.Text, nullable=False),
            sa.Column("kind", sa.Text, nullable=False),
            sa.Column("operation", sa.Text, nullable=False),
            *(sa.Column(name, sa.Text) for name in ("key_1", "key_2", "old_1", "old_2")),
            sa.Column("at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
            schema=schema,
        )
        log = names.quoted("change_log")
        op.execute(f"alter table {log} alter column txid type xid8 using cast(txid as xid8)")
        op.execute(f"alter table {log} alter column txid set default pg_current_xact_id()")
        op.create_index("change_log_txid", names.bare("change_log"), ["txid"], schema=schema)
    else:
        op.execute(
            f"create table {names.quoted('change_log')} (seq integer primary key autoincrement, kind text not null, "
            "operation text not null, key_1, key_2, old_1, old_2, at integer not null, token text not null)"
        )
    op.create_table(
        names.bare("change_state"),
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("consumer_epoch", sa.Text),
        sa.Column("consumer_store", sa.Text),
        schema=schema,
    )


def downgrade() -> None:
    """Drop both."""
    names = context.config.attributes["names"]
    op.drop_table(names.bare("change_state"), schema=names.table_schema)
    op.drop_table(names.bare("change_log"), schema=names.table_schema)
