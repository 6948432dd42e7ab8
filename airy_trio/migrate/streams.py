"""The two streams of migrations, run by Alembic on a connection of ours: ``changes`` and ``log``.

Each has a version table next to the tables that it makes. Whether a database is at the newest revision is read without
Alembic, whose import is a tenth of a server's start.

A schema may be ahead of the program: during a rolling upgrade, when a server of the version before restarts, and after
a rollback. The schema itself says which programs it works with: the column ``compatible_from`` in the state table of a
stream (``change_state``, ``log_state``) holds the oldest revision whose programs work with the schema as it is, with
its triggers and with their own. A migration that only adds (it expands) leaves the value; one that takes away what
older programs need (it contracts) raises it, in the row and in the column's default.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import sqlalchemy as sa

from airy_trio.capture import change_log
from airy_trio.database import POSTGRES, DatabaseOptions, Names, quote_identifier
from airy_trio.errors import StartError
from airy_trio.log.sql import tables

if TYPE_CHECKING:
    from alembic.config import Config

Stream = Literal["changes", "log"]
_REVISION: Final = re.compile(r'^revision = "(\w+)"$', re.MULTILINE)
_STATES: Final[Mapping[Stream, str]] = {"changes": change_log.STATE, "log": tables.STATE}
_COMPATIBLE: Final = "compatible_from"


def upgrade(connection: sa.Connection, stream: Stream, names: Names) -> None:
    """Bring a stream up to date, in the connection's transaction. Not for a schema that is ``ahead``.

    Raises ``StartError`` where the schema is of a revision that this version does not know.
    """
    if names.dialect == POSTGRES and names.schema not in sa.inspect(connection).get_schema_names():
        connection.exec_driver_sql(f"create schema {quote_identifier(names.schema)}")
    from alembic import command, util  # noqa: PLC0415 - see above

    try:
        command.upgrade(_config(connection, stream, names), "head")
    except util.CommandError as error:
        raise StartError([f"{names.schema} cannot be migrated: {error}"]) from None


def downgrade(connection: sa.Connection, stream: Stream, names: Names, to: str = "base") -> None:
    """Take a stream back to a revision, in the connection's transaction; by default its tables and version table go."""
    if _revision(connection, stream, names) is not None:
        from alembic import command  # noqa: PLC0415 - see above

        command.downgrade(_config(connection, stream, names), to)
        if to == "base":
            connection.exec_driver_sql(f"drop table {names.quoted(_version_table(stream))}")


def pending(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> Iterator[str]:
    """A line if this version cannot work with a stream's schema: there is none, it is older, or it is too new."""
    names = Names(connection.dialect.name, options.schema)
    current, newest = _revision(connection, stream, names), head(stream)
    newer = ahead(connection, stream, options)
    if current is None:
        yield f"{names.schema} has not been installed here; run: airy-trio migrate --config FILE"
    elif newer is not None:
        compatible_from = _compatible_from(connection, stream, names)
        if compatible_from is None or compatible_from > newest:
            yield f"{newer}, with which this version does not work; install the newer version"
    elif current != newest:
        yield f"{names.schema} is at {current}, this version needs {newest}; run: airy-trio migrate --config FILE"


def ahead(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> str | None:
    """How a line begins if a newer version made a stream's schema; ``pending`` says whether this one works with it."""
    names = Names(connection.dialect.name, options.schema)
    current = _revision(connection, stream, names)
    if current is None or current <= head(stream):  # they end in their number, of four digits
        return None
    return f"{names.schema} is at {current}, of a newer version of airy-trio"


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


def _compatible_from(connection: sa.Connection, stream: Stream, names: Names) -> str | None:
    """The oldest revision whose programs work with the schema; None if the schema does not say."""
    inspector, table = sa.inspect(connection), names.bare(_STATES[stream])
    if not inspector.has_table(table, schema=names.table_schema):
        return None
    if _COMPATIBLE not in {column["name"] for column in inspector.get_columns(table, schema=names.table_schema)}:
        return None
    state = sa.table(table, sa.column(_COMPATIBLE, sa.Text), schema=names.table_schema)
    found: str | None = connection.execute(sa.select(state.c[_COMPATIBLE])).scalar_one_or_none()
    return found


def _config(connection: sa.Connection, stream: Stream, names: Names) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - see above

    folder = migrations_folder()
    config = Config()
    config.set_main_option("path_separator", "newline")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / stream).replace("%", "%%"))
    config.attributes.update(connection=connection, names=names, stream=stream)
    return config
