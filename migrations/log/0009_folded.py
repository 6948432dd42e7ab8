"""The current state, to which events are added after their append.

``folded`` in ``log_state`` is the offset up to which ``log_current`` has the events of the log. ``log_ended`` has the
objects that have ended: no event of theirs up to this offset is part of the state. A server of the version before
writes ``state_at`` in another form, so each version takes the state of the other for a missing one.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "log_0009"
down_revision = "log_0008"


def upgrade() -> None:
    """Add the column, the table and its index."""
    names = context.config.attributes["names"]
    # First, because this lock may wait for the recorder, and no other lock may be held meanwhile.
    op.add_column(names.bare("log_state"), sa.Column("folded", sa.BigInteger), schema=names.table_schema)
    table = names.bare("log_ended")
    op.create_table(
        table,
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("offset", sa.BigInteger, nullable=False),
        schema=names.table_schema,
    )
    op.create_index(f"{table}_offset", table, ["offset"], schema=names.table_schema)


def downgrade() -> None:
    """Drop them."""
    names = context.config.attributes["names"]
    op.drop_table(names.bare("log_ended"), schema=names.table_schema)
    op.drop_column(names.bare("log_state"), "folded", schema=names.table_schema)
