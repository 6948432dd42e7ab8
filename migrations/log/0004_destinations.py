"""Indexes by destination: who resumes on a quiet conversation brings an old position, and would read all that followed.

Partial where most destinations are none, so that an event costs only those that it has.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0004"
down_revision = "log_0003"
branch_labels = None
depends_on = None

COLUMNS = ("conversation_id", "channel_id", "type")


def upgrade() -> None:
    """Index the events of each conversation, channel and type by offset."""
    names = context.config.attributes["names"]
    table = names.bare("event_log")
    for column in COLUMNS:
        present = None if column == "type" else sa.text(f"{column} is not null")
        op.create_index(
            f"{table}_{column}",
            table,
            [column, "offset"],
            schema=names.table_schema,
            postgresql_where=present,
            sqlite_where=present,
        )


def downgrade() -> None:
    """Take them away."""
    names = context.config.attributes["names"]
    table = names.bare("event_log")
    for column in COLUMNS:
        op.drop_index(f"{table}_{column}", table, schema=names.table_schema)
