"""A schema as an older version of airy-trio left it."""

import sqlalchemy as sa
from alembic import command

from airy_trio import migrate
from airy_trio.database import Names
from airy_trio.migrate import Stream


def downgrade(connection: sa.Connection, stream: Stream, names: Names, to: str) -> None:
    """Bring the tables of a stream back to a revision, in the connection's transaction."""
    command.downgrade(migrate._config(connection, stream, names), to)  # noqa: SLF001 - what a migration uses
