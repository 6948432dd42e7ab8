"""The two streams of migrations, run by Alembic on a connection of ours: ``changes`` and ``log``.

Each has a version table of its own, beside the tables that it makes. Knows where the migrations are, and nothing of
what stands in them but their names: whether a database is at the newest one is read without Alembic, whose import is a
tenth of a server's start.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import sqlalchemy as sa

from airy_trio.database import POSTGRES, DatabaseOptions, Names, quote_identifier

if TYPE_CHECKING:
    from alembic.config import Config

Stream = Literal["changes", "log"]
_REVISION: Final = re.compile(r'^revision = "(\w+)"$', re.MULTILINE)


def upgrade(connection: sa.Connection, stream: Stream, names: Names) -> None:
    """Bring a stream up to date, in the connection's transaction."""
    if names.dialect == POSTGRES and names.schema not in sa.inspect(connection).get_schema_names():
        connection.exec_driver_sql(f"create schema {quote_identifier(names.schema)}")
    from alembic import command  # noqa: PLC0415 - see above

    command.upgrade(_config(connection, stream, names), "head")


def downgrade(connection: sa.Connection, stream: Stream, names: Names) -> None:
    """Take a stream's tables away, its version table too, in the connection's transaction."""
    if _revision(connection, stream, names) is not None:
        from alembic import command  # noqa: PLC0415 - see above

        command.downgrade(_config(connection, stream, names), "base")
        connection.exec_driver_sql(f"drop table {names.quoted(_version_table(stream))}")


def pending(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> Iterator[str]:
    """A line where the database is not at the newest migration of a stream, or is beyond it."""
    names = Names(connection.dialect.name, options.schema)
    current = _revision(connection, stream, names)
    newest = head(stream)
    if current is None:
        yield f"{names.schema} has not been installed here; run: airy-trio migrate --config FILE"
    elif current != newest:
        yield f"{names.schema} is at {current}, this version needs {newest}; run: airy-trio migrate --config FILE"


def head(stream: Stream) -> str:
    """The newest revision of a stream: that of its last file, for their names begin with their number."""
    last = max((migrations_folder() / stream).glob("[0-9]*.py"))
    [revision] = _REVISION.findall(last.read_text(encoding="utf-8"))
    return str(revision)


def migrations_folder() -> Path:
    """Where the migrations are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "migrations"
    return inside if inside.is_dir() else package.with_name("migrations")


def _version_table(stream: Stream) -> str:
    return f"{stream}_version"


def _revision(connection: sa.Connection, stream: Stream, names: Names) -> str | None:
    table = _version_table(stream)
    if not sa.inspect(connection).has_table(names.bare(table), schema=names.table_schema):
        return None
    statement = f"select version_num from {names.quoted(table)}"  # noqa: S608 - a name of ours, quoted
    found = connection.exec_driver_sql(statement).scalar_one_or_none()
    return None if found is None else str(found)


def _config(connection: sa.Connection, stream: Stream, names: Names) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - see above

    folder = migrations_folder()
    config = Config()
    config.set_main_option("path_separator", "newline")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / stream).replace("%", "%%"))
    config.attributes.update(connection=connection, names=names, stream=stream)
    return config
