"""The event log and its state, in the database of the ``sql`` event store."""

import secrets
import string

import sqlalchemy as sa
from alembic import context, op

revision = "log_0001"
down_revision = None


def upgrade() -> None:
    """Create ``event_log``, and ``log_state`` with a first, empty epoch."""
    names = context.config.attributes["names"]
    schema = names.table_schema
    op.create_table(
        names.bare("event_log"),
        sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("appended_at_ms", sa.BigInteger, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("conversation_id", sa.Text),
        sa.Column("channel_id", sa.Text),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("truncated", sa.Boolean, nullable=False),
        schema=schema,
    )
    state = op.create_table(
        names.bare("log_state"),
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("appended_at_ms", sa.BigInteger, nullable=False),
        sa.Column("resume_point", sa.Text),
        schema=schema,
    )
    epoch = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(6))
    op.bulk_insert(state, [{"id": 1, "epoch": epoch, "first": 1, "last": 0, "appended_at_ms": 0}])


def downgrade() -> None:
    """Drop both."""
    names = context.config.attributes["names"]
    op.drop_table(names.bare("log_state"), schema=names.table_schema)
    op.drop_table(names.bare("event_log"), schema=names.table_schema)
