"""The connection that has claimed each durable subscription."""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0003"
down_revision = "log_0002"


def upgrade() -> None:
    """Add ``holder`` to ``acknowledged``."""
    names = context.config.attributes["names"]
    holder = sa.Column("holder", sa.Text, nullable=False, server_default="")
    op.add_column(names.bare("acknowledged"), holder, schema=names.table_schema)


def downgrade() -> None:
    """Drop it."""
    names = context.config.attributes["names"]
    op.drop_column(names.bare("acknowledged"), "holder", schema=names.table_schema)
