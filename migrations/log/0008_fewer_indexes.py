"""The current state without indexes by type and by channel, for the reasons in ``log_0004``.

Each made every append of a kept type slower. Reading what one channel has of 100,000 objects takes a tenth of a second
without them. A server of an earlier version works without them, too.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0008"
down_revision = "log_0007"


def upgrade() -> None:
    """Drop both."""
    names = context.config.attributes["names"]
    table = names.bare("log_current")
    for column in ("type", "channel_id"):
        op.drop_index(f"{table}_{column}", table, schema=names.table_schema)


def downgrade() -> None:
    """Create them again."""
    names = context.config.attributes["names"]
    table = names.bare("log_current")
    op.create_index(f"{table}_type", table, ["type", "offset"], schema=names.table_schema)
    present = sa.text("channel_id is not null")
    op.create_index(
        f"{table}_channel_id",
        table,
        [sa.text("left(channel_id, 200)") if names.dialect == "postgresql" else "channel_id", "offset"],
        schema=names.table_schema,
        postgresql_where=present,
        sqlite_where=present,
    )
