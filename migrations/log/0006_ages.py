"""The age of the change behind each event when the event was appended."""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0006"
down_revision = "log_0005"


def upgrade() -> None:
    """Add ``age_ms`` to ``event_log``. NULL means that it is not known, as in rows of earlier versions."""
    names = context.config.attributes["names"]
    op.add_column(names.bare("event_log"), sa.Column("age_ms", sa.BigInteger), schema=names.table_schema)


def downgrade() -> None:
    """Drop it."""
    names = context.config.attributes["names"]
    op.drop_column(names.bare("event_log"), "age_ms", schema=names.table_schema)
