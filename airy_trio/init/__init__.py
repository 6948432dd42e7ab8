"""``airy-trio init``: examine a database and write a settings file for it.

It reads in read-only transactions. ``catalogue`` finds the tables, ``known`` recognises schemas as a whole,
``proposal`` chooses the table and columns that fit each kind best, by the words of ``vocabulary``, and ``file`` writes
them down with the reason for each. Then the settings are used as a server would use them: the mapping is inspected, the
newest rows become events, and ``migrate`` is previewed.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice, zip_longest
from typing import Final, TypeVar

import sqlalchemy as sa
from attrs import frozen

from airy_trio import migrate
from airy_trio.capture.inspection import inspect
from airy_trio.check import rows, servers
from airy_trio.database import (
    POSTGRES,
    ROW_SECURITY_OFF,
    SQLITE,
    Database,
    DatabaseError,
    DatabaseOptions,
    Names,
    postgres_engine,
    shown,
    sqlite_engine,
    sqlite_path,
)
from airy_trio.errors import MappingError, StartError
from airy_trio.init import catalogue, file
from airy_trio.init.catalogue import FoundTable, Row
from airy_trio.init.known import recognised
from airy_trio.init.proposal import Ask, Proposals, propose
from airy_trio.settings import Settings, parse

__all__ = ["Ask", "Draft", "draft"]

T = TypeVar("T")

EVENTS_MAX: Final = 10
"""How many sample events are shown, of all kinds in turn."""
VARIABLE: Final = "DATABASE_URL"
"""The variable from which the settings read a URL with a password, unless another one has it already."""
_SECRETS: Final = ("password", "sslpassword")
"""Options of a URL in which libpq accepts a secret, in addition to the part before the host."""


@frozen(kw_only=True)
class Draft:
    """A settings file that fits the database, and what a person should know before using it.

    - ``text``: the file. ``settings``: the same, as a server would read it now.
    - ``found``: lines about the tables and the reasons. ``warnings``: as ``check`` gives them.
    - ``events``: bodies of events that the newest rows would become.
    - ``variable``: the variable that must have the URL when the file is read, and does not have it yet; or "".
    """

    text: str
    settings: Settings
    found: Sequence[str]
    warnings: Sequence[str]
    events: Sequence[str]
    variable: str


def draft(url: str, environ: Mapping[str, str], ask: Ask) -> Draft:
    """Examine the database and return the draft of its settings. Changes neither the database nor a file.

    ``url`` may refer to the environment, as in the settings. Raises ``SettingsError`` for a wrong URL, and
    ``StartError`` if the database cannot be read or has no table that fits.
    """
    written, variable = _written(url, environ)
    environ = {**environ, variable: url} if variable else environ
    place = parse(f"[database]\nurl = {json.dumps(written)}\n", environ).database
    if sa.make_url(place.url).get_backend_name() == SQLITE:
        migrate.require_file(sqlite_path(place.url))
        engine = sqlite_engine(sqlite_path(place.url), lenient=True)
    else:
        timeout_s = place.connect_timeout_s
        engine = postgres_engine(place.url, connect_timeout_s=timeout_s, settings=ROW_SECURITY_OFF, pooled=True)

    try:
        found, proposals = _proposed(Database(engine), place, ask)
        text = file.text_of(written, proposals)
        settings = parse(text, environ)
        warnings, events = _read(Database(engine), partial(_tried, settings=settings))
    except DatabaseError as error:
        raise StartError([f"database.url: the database cannot be used: {error}"]) from None
    finally:
        engine.dispose()
    return Draft(text=text, settings=settings, found=found, warnings=warnings, events=events, variable=variable)


def _read(database: Database, work: Callable[[sa.Connection], T]) -> T:
    """Read in a read-only transaction. No transaction stays open while a question waits for its answer."""

    def read_only(connection: sa.Connection) -> T:
        is_postgres = connection.dialect.name == POSTGRES
        connection.exec_driver_sql("set transaction read only" if is_postgres else "pragma query_only = 1")
        return work(connection)

    return database.run_sync(read_only)


def _written(url: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the URL for the file, without a secret, and the variable that must still be set, or ""."""
    if "${" in url:
        return url, ""
    holder = next((name for name in (VARIABLE, *environ) if environ.get(name) == url and name.isidentifier()), None)
    if holder is not None:
        return f"${{{holder}}}", ""
    with suppress(sa.exc.ArgumentError, ValueError):  # Reading the settings reports a wrong URL without quoting it.
        parsed = sa.make_url(url)
        if parsed.password is None and not any(name in parsed.query for name in _SECRETS):
            return url, ""
    return f"${{{VARIABLE}}}", VARIABLE


def _proposed(database: Database, place: DatabaseOptions, ask: Ask) -> tuple[Sequence[str], Proposals]:
    """Return the findings as lines of text, and the proposals. Raises ``StartError`` if no table fits."""

    def sample(table: FoundTable) -> Sequence[Row]:
        return _read(database, partial(catalogue.sample, table=table))

    tables = _read(database, partial(catalogue.look, names=Names.of(place.url, place.schema)))
    name, proposals = recognised(tables) or ("", None)
    if proposals is None:
        proposals = propose(tables, sample, _application(place.url), ask)
    if all(proposal.table is None for proposal in proposals.values()):
        found = f"no table has the columns of a message, channel or tag (tables that can be read: {len(tables)})"
        raise StartError([f"database.url: {found}; write the mapping by hand"])
    heading = f"{shown(place.url)}, tables: {len(tables)}" + (f", recognised as {name}" if name else "")
    return [heading, *chain.from_iterable(map(file.lines_of, proposals.values()))], proposals


def _tried(connection: sa.Connection, settings: Settings) -> tuple[Sequence[str], Sequence[str]]:
    """Read the newest rows as a server would. Return warnings and bodies of events. Raises ``MappingError``."""
    tables = inspect(connection, settings.tables)
    findings = list(rows.findings(connection, settings, tables))
    if problems := [line for weight, line in findings if weight == "problem"]:
        raise MappingError(problems)
    bodies = [rows.newest_bodies(connection, settings, tables, table, EVENTS_MAX) for table in tables.values()]
    in_turn = (body for body in chain.from_iterable(zip_longest(*bodies)) if body is not None)
    warnings = [line for _, line in findings]
    if connection.dialect.name == POSTGRES:
        warnings += (f"database.url: {line}" for line in servers.lacks_session(connection))
    return warnings, list(islice(in_turn, EVENTS_MAX))


def _application(url: str) -> str:
    """Return a word for the application: the name of its database."""
    name = (sa.make_url(url).database or "").rpartition("/")[2]
    return re.sub(r"\.(db|sqlite3?)$", "", name) or "application"
