"""An index of events by conversation.

A client that resumes on a quiet conversation has an old position, and without the index the store would read all later
events of all conversations. The index is partial, so events without a conversation cost nothing. Channels and types
have no index: each index slows down every append, and there are few channels and types, each with many events. Scanning
a million events for a type that has few takes a third of a second on Postgres and a second on SQLite. On Postgres only
the beginning of the id is indexed, because an index cannot store rows of more than 2704 octets, and the append would
fail.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0004"
down_revision = "log_0003"

COLUMN = "conversation_id"


def upgrade() -> None:
    """Index the events of each conversation by offset."""
    names = context.config.attributes["names"]
    table = names.bare("event_log")
    present = sa.text(f"{COLUMN} is not null")
    postgres = names.dialect == "postgresql"
    op.create_index(
        f"{table}_{COLUMN}",
        table,
        [sa.text(f"left({COLUMN}, 200)") if postgres else COLUMN, "offset"],
        schema=names.table_schema,
        postgresql_where=present,
        sqlite_where=present,
    )


def downgrade() -> None:
    """Drop it."""
    names = context.config.attributes["names"]
    table = names.bare("event_log")
    op.drop_index(f"{table}_{COLUMN}", table, schema=names.table_schema)
