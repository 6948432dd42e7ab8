"""The identity of the change log and the newest resume points that were read from it, in ``change_state``."""

import secrets

import sqlalchemy as sa
from alembic import context, op

revision = "changes_0002"
down_revision = "changes_0001"

COLUMNS = ("source", "mark", "replaced_mark", "compatible_from")


def upgrade() -> None:
    """Add the columns. They have defaults, because the only row is written after the migrations.

    ``source`` is a random identity, drawn here; it never changes. ``compatible_from`` is the oldest migration whose
    programs work with these tables.
    """
    names = context.config.attributes["names"]
    defaults = (secrets.token_hex(8), "", "", revision)
    for name, default in zip(COLUMNS, defaults, strict=True):
        column = sa.Column(name, sa.Text, nullable=False, server_default=default)
        op.add_column(names.bare("change_state"), column, schema=names.table_schema)


def downgrade() -> None:
    """Drop the columns."""
    names = context.config.attributes["names"]
    for name in COLUMNS:
        op.drop_column(names.bare("change_state"), name, schema=names.table_schema)
