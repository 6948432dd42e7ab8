"""The current state: the newest event of each object whose type is kept, apart from the log, which is trimmed.

``log_current`` has one row for each such object. Its key is a digest, because an index of Postgres cannot contain an id
of any length. ``log_state`` has the ``generation`` of the state, what the recorder knows about it (``marks``), and the
head and resume point that it belongs to (``state_at``). A server of an earlier version moves head and resume point
without changing the state, which then counts as missing.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0007"
down_revision = "log_0006"

COLUMNS = ("generation", "marks", "state_at")


def upgrade() -> None:
    """Add the table, its indexes, and the columns."""
    names = context.config.attributes["names"]
    postgres = names.dialect == "postgresql"
    for name in COLUMNS:  # first, because this lock may wait for the recorder, and no other lock may be held meanwhile
        op.add_column(names.bare("log_state"), sa.Column(name, sa.Text), schema=names.table_schema)
    table = names.bare("log_current")
    op.create_table(
        table,
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("generation", sa.Text, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("appended_at_ms", sa.BigInteger, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("conversation_id", sa.Text),
        sa.Column("channel_id", sa.Text),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("truncated", sa.Boolean, nullable=False),
        sa.Column("age_ms", sa.BigInteger),
        schema=names.table_schema,
    )
    op.create_index(f"{table}_offset", table, ["offset"], schema=names.table_schema)
    op.create_index(f"{table}_type", table, ["type", "offset"], schema=names.table_schema)
    for column in ("conversation_id", "channel_id"):
        present = sa.text(f"{column} is not null")
        op.create_index(
            f"{table}_{column}",
            table,
            [sa.text(f"left({column}, 200)") if postgres else column, "offset"],
            schema=names.table_schema,
            postgresql_where=present,
            sqlite_where=present,
        )


def downgrade() -> None:
    """Drop them."""
    names = context.config.attributes["names"]
    op.drop_table(names.bare("log_current"), schema=names.table_schema)
    for name in COLUMNS:
        op.drop_column(names.bare("log_state"), name, schema=names.table_schema)
