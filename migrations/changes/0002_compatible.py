"""Which programs work with this schema: ``compatible_from`` in ``change_state``."""

import sqlalchemy as sa
from alembic import context, op

revision = "changes_0002"
down_revision = "changes_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add ``compatible_from``: programs of this revision or newer work with the schema."""
    names = context.config.attributes["names"]
    column = sa.Column("compatible_from", sa.Text, nullable=False, server_default=revision)
    op.add_column(names.bare("change_state"), column, schema=names.table_schema)


def downgrade() -> None:
    """Take it away."""
    names = context.config.attributes["names"]
    op.drop_column(names.bare("change_state"), "compatible_from", schema=names.table_schema)
