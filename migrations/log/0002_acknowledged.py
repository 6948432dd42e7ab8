"""The positions up to which durable subscriptions have acknowledged events."""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0002"
down_revision = "log_0001"


def upgrade() -> None:
    """Create ``acknowledged``."""
    names = context.config.attributes["names"]
    op.create_table(
        names.bare("acknowledged"),
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("used_at_ms", sa.BigInteger, nullable=False),
        schema=names.table_schema,
    )


def downgrade() -> None:
    """Drop it."""
    names = context.config.attributes["names"]
    op.drop_table(names.bare("acknowledged"), schema=names.table_schema)
