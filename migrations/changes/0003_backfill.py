"""Backfills that have not ended: a column of ``change_state``."""

import sqlalchemy as sa
from alembic import context, op

revision = "changes_0003"
down_revision = "changes_0002"


def upgrade() -> None:
    """Add the column. Servers of the previous version do not use it, so ``compatible_from`` stays."""
    names = context.config.attributes["names"]
    op.add_column(names.bare("change_state"), sa.Column("backfill", sa.Text), schema=names.table_schema)


def downgrade() -> None:
    """Drop the column."""
    names = context.config.attributes["names"]
    op.drop_column(names.bare("change_state"), "backfill", schema=names.table_schema)
