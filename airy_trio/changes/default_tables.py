"""Our default tables, for who has none: a database made like this needs no mapping (settings, "default schema").

They are made once, on request, never over existing tables, and belong to the application from then on.
"""

from collections.abc import Collection

import sqlalchemy as sa

from airy_trio.changes.tables import Kind

_METADATA = sa.MetaData()
_TIME = sa.TIMESTAMP(timezone=True).with_variant(sa.Text(), "sqlite")

MESSAGES = sa.Table(
    "messages",
    _METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("conversation_id", sa.Text, nullable=False),
    sa.Column("channel_id", sa.Text, nullable=False),
    sa.Column("content", sa.Text),
    sa.Column("delivery_state", sa.Text, nullable=False),
    sa.Column("from_contact", sa.Boolean, nullable=False),
    sa.Column("sent_at", _TIME, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("sender_id", sa.Text),
    sa.Index("messages_conversation", "conversation_id", "sent_at"),  # the newest message of a conversation
)
METADATA = sa.Table(
    "metadata",
    _METADATA,
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("identifier", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text),
    sa.Column("value_type", sa.Text, nullable=False, server_default="text"),
    sa.Column("updated_at", _TIME),
)
CHANNELS = sa.Table(
    "channels",
    _METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("source_channel_id", sa.Text, nullable=False),
    sa.Column("connected", sa.Boolean, nullable=False),
)
TAGS = sa.Table(
    "tags",
    _METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("color", sa.Text, nullable=False),
)


def create(connection: sa.Connection, kinds: Collection[Kind]) -> list[str]:
    """Make the default tables of these kinds, which must not be there, and give their names."""
    tables = [table for table in _METADATA.sorted_tables if table.name in kinds]
    _METADATA.create_all(connection, tables, checkfirst=False)
    return [table.name for table in tables]
