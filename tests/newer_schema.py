"""A schema as a newer version of airy-trio leaves it: another revision, more columns, triggers with other bodies."""

import sqlalchemy as sa

from airy_trio.database import SQLITE, escape_colons, sqlite_path
from airy_trio.migrate import Stream, head
from tests.application import Application

NEWER_SCHEMA = "working with the schema of a newer version"
"""What a server logs that starts on such a schema."""
MARK = "/* of a newer version */"
TRIGGER = "tags_insert"
STATES = {"changes": "change_state", "log": "log_state"}
_INSERTS = "insert into"  # what the body of the trigger begins with


def newer(stream: Stream) -> str:
    """The revision that ``move_ahead`` leaves."""
    return f"{stream}_9999"


def home_of(application: Application, stream: Stream) -> Application:
    """The database of a stream with the default settings: on SQLite the events have a file of their own."""
    if stream == "changes" or application.dialect != SQLITE:
        return application
    return Application(f"sqlite:///{sqlite_path(application.url)}.airy-trio.db")


def move_ahead(application: Application, stream: Stream, compatible_from: str | None = None) -> None:
    """Migrate a stream as a newer version would. ``compatible_from``: this version's newest revision, or another."""
    home = home_of(application, stream)
    version, state = home.log_table(f"{stream}_version"), home.log_table(STATES[stream])
    with home.engine.begin() as connection:
        connection.execute(sa.text(f"alter table {state} add column of_a_newer_version text not null default 'x'"))
        connection.execute(sa.text(f"update {version} set version_num = '{newer(stream)}'"))
        set_compatible_from(connection, home, stream, compatible_from or head(stream))
        if stream == "changes":
            _mark_trigger(connection, home)
    home.engine.dispose()


def set_compatible_from(connection: sa.Connection, home: Application, stream: Stream, revision: str) -> None:
    """Say in the schema which programs work with it."""
    connection.execute(sa.text(f"update {home.log_table(STATES[stream])} set compatible_from = '{revision}'"))


def trigger_of(application: Application) -> str | None:
    """The definition of the trigger that ``move_ahead`` changes; None if it is missing."""
    with application.engine.begin() as connection:
        return _definition(connection, application)


def _definition(connection: sa.Connection, application: Application) -> str | None:
    if application.dialect == SQLITE:
        statement = f"select sql from sqlite_master where type = 'trigger' and name = 'airy_trio_{TRIGGER}'"
    else:
        statement = (
            "select pg_get_functiondef(tgfoid) from pg_trigger "
            f"where tgname = 'airy_trio_{TRIGGER}' and tgenabled in ('O', 'A')"
        )
    found: str | None = connection.execute(sa.text(statement)).scalar_one_or_none()
    return found


def _mark_trigger(connection: sa.Connection, application: Application) -> None:
    definition = _definition(connection, application)
    assert definition is not None
    marked = definition.replace(_INSERTS, f"{MARK} {_INSERTS}", 1)
    assert marked != definition
    if application.dialect == SQLITE:
        connection.execute(sa.text(f"drop trigger airy_trio_{TRIGGER}"))
    connection.execute(sa.text(escape_colons(marked)))
