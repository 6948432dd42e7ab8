"""The two streams of migrations, ``changes`` and ``log``, run by Alembic on a connection of ours.

Each has a version table next to its tables. The revision of a database is read without Alembic, because importing
Alembic takes a tenth of a server's start.

A schema may be ahead of the program: during a rolling upgrade, if a server of the previous version restarts, and after
a rollback. The schema itself says which programs work with it: the column ``compatible_from`` in the state table of a
stream (``change_state``, ``log_state``) has the oldest revision whose programs work with the current schema, with its
triggers and with their own. A migration that only adds something (expands) does not change the value. A migration that
removes something that older programs need (contracts) raises it, in the row and in the column's default.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import sqlalchemy as sa
from attrs import frozen

from airy_trio.capture import change_log
from airy_trio.database import POSTGRES, DatabaseOptions, Names, quote_identifier
from airy_trio.errors import StartError
from airy_trio.log.sql import tables

if TYPE_CHECKING:
    from alembic.config import Config

Stream = Literal["changes", "log"]
_REVISION: Final = re.compile(r'^revision = "(\w+)"$', re.MULTILINE)
_STATES: Final[Mapping[Stream, str]] = {"changes": change_log.STATE, "log": tables.STATE}


def upgrade(connection: sa.Connection, stream: Stream, names: Names, to: str = "head") -> None:
    """Bring a stream up to a revision, in the connection's transaction; by default up to date.

    The schema must not be newer than that. Raises ``StartError`` if this version does not know the revision of the
    schema.
    """
    # Not by ``if not exists``, for which Postgres requires the right to create schemas even if this one exists.
    if names.dialect == POSTGRES and names.schema not in sa.inspect(connection).get_schema_names():
        connection.exec_driver_sql(f"create schema {quote_identifier(names.schema)}")
    from alembic import command, util  # noqa: PLC0415 - slow to import, see above

    try:
        command.upgrade(_config(connection, stream, names), to)
    except util.CommandError as error:
        raise StartError([f"{names.schema} cannot be migrated: {error}"]) from None


def downgrade(connection: sa.Connection, stream: Stream, names: Names, to: str = "base") -> None:
    """Downgrade a stream to a revision, in the connection's transaction; by default remove its tables and version."""
    if revision_of(connection, stream, names) is not None:
        from alembic import command  # noqa: PLC0415 - slow to import, see above

        command.downgrade(_config(connection, stream, names), to)
        if to == "base":
            connection.exec_driver_sql(f"drop table {names.quoted(_version_table(stream))}")


@frozen
class Schema:
    """The schema of a stream in one database.

    ``faults``: a line if this version cannot work with it: it is missing, older, or too new. ``newer``: the beginning
    of a line if it is of a newer version, whether we work with it or not.
    """

    faults: tuple[str, ...] = ()
    newer: str | None = None


def schema_of(connection: sa.Connection, stream: Stream, options: DatabaseOptions) -> Schema:
    """Compare the revision of a database with the newest one that this version knows."""
    names = Names(connection.dialect.name, options.schema)
    current, newest = revision_of(connection, stream, names), head(stream)
    if current is None:
        return Schema((f"{names.schema} has not been installed here; run: airy-trio migrate --config FILE",))
    begin = f"{names.schema} is at {current}"
    if current <= newest:  # revisions end in a number of four digits
        remedy = f"this version needs {newest}; run: airy-trio migrate --config FILE"
        return Schema((f"{begin}, {remedy}",) if current < newest else ())
    newer = f"{begin}, of a newer version of airy-trio"
    state = sa.table(names.bare(_STATES[stream]), sa.column("compatible_from", sa.Text), schema=names.table_schema)
    compatible_from: str | None = connection.execute(sa.select(state.c.compatible_from)).scalar_one_or_none()
    if compatible_from is None or compatible_from > newest:
        return Schema((f"{newer}, with which this version does not work; install the newer version",), newer)
    return Schema(newer=newer)


def head(stream: Stream) -> str:
    """Return the newest revision of a stream."""
    return revisions(stream)[-1]


def revisions(stream: Stream) -> list[str]:
    """Return the revisions of a stream, the oldest first: the names of their files begin with numbers."""
    files = sorted((migrations_folder() / stream).glob("[0-9]*.py"))
    return [str(revision) for file in files for revision in _REVISION.findall(file.read_text(encoding="utf-8"))]


def revision_of(connection: sa.Connection, stream: Stream, names: Names) -> str | None:
    """Return the revision of a database, or None if the stream is not installed there."""
    table = _version_table(stream)
    if not sa.inspect(connection).has_table(names.bare(table), schema=names.table_schema):
        return None
    statement = f"select version_num from {names.quoted(table)}"  # noqa: S608 - a name of ours, quoted
    found = connection.exec_driver_sql(statement).scalar_one_or_none()
    return None if found is None else str(found)


def migrations_folder() -> Path:
    """Return the folder of the migrations."""
    return installed("migrations")


def installed(folder: str) -> Path:
    """Return a folder that is inside the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.with_name(folder)


def _version_table(stream: Stream) -> str:
    return f"{stream}_version"


def _config(connection: sa.Connection, stream: Stream, names: Names) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - slow to import, see above

    folder = migrations_folder()
    config = Config()
    config.set_main_option("path_separator", "newline")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / stream).replace("%", "%%"))
    config.attributes.update(connection=connection, names=names, stream=stream)
    return config
