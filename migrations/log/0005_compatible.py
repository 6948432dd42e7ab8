"""The oldest migration whose programs work with this schema: ``compatible_from`` in ``log_state``."""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0005"
down_revision = "log_0004"


def upgrade() -> None:
    """Add ``compatible_from``. Programs of that revision or newer work with the schema."""
    names = context.config.attributes["names"]
    column = sa.Column("compatible_from", sa.Text, nullable=False, server_default=revision)
    op.add_column(names.bare("log_state"), column, schema=names.table_schema)


def downgrade() -> None:
    """Drop it."""
    names = context.config.attributes["names"]
    op.drop_column(names.bare("log_state"), "compatible_from", schema=names.table_schema)
