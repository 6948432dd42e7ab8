"""``airy-trio init``: examine a database and write a settings file for it.

It reads in read-only transactions. ``catalogue`` finds the tables. ``proposal`` recognises a schema, or chooses the
table and columns that fit each kind best, by the words of ``vocabulary``. This module writes down the choices, with the
reason for each. It uses the settings as a server would: it inspects the mapping, makes events of the newest rows, and
previews ``migrate``.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice, zip_longest
from typing import Final, TypeVar

import sqlalchemy as sa
from attrs import frozen

from airy_trio.capture.feed import Kind
from airy_trio.capture.inspection import inspect
from airy_trio.capture.mapping import DELETABLE, KINDS, Scalar
from airy_trio.check import rows, servers
from airy_trio.database import POSTGRES, Database, DatabaseOptions, Names, shown
from airy_trio.errors import MappingError, StartError
from airy_trio.init import catalogue
from airy_trio.init.catalogue import FoundTable, Row
from airy_trio.init.columns import Source
from airy_trio.init.proposal import Ask, Proposal, Proposals, propose, recognised
from airy_trio.settings import Settings, parse
from airy_trio.terminal import one_line

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
    with servers.opened(place.url, place.connect_timeout_s) as database:
        found, proposals = _proposed(database, place, ask)
        text = text_of(written, proposals)
        settings = parse(text, environ)
        warnings, events = _read(database, partial(_tried, settings=settings))
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
        database_name = (sa.make_url(place.url).database or "").rpartition("/")[2]
        application = re.sub(r"\.(db|sqlite3?)$", "", database_name) or "application"
        proposals = propose(tables, sample, application, ask)
    if not tables:
        needs = "on Postgres the role needs SELECT on the tables and USAGE on their schema"
        raise StartError([f"database.url: there is no table that can be read; {needs}"])
    if all(proposal.table is None for proposal in proposals.values()):
        wanted = "no table has a primary key of one column and the columns of a message, channel or tag"
        found = f"{wanted} (tables that can be read: {len(tables)})"
        raise StartError([f"database.url: {found}; write the mapping by hand"])
    heading = f"{shown(place.url)}, tables: {len(tables)}" + (f", recognised as {name}" if name else "")
    return [heading, *chain.from_iterable(map(lines_of, proposals.values()))], proposals


def _tried(connection: sa.Connection, settings: Settings) -> tuple[Sequence[str], Sequence[str]]:
    """Read the newest rows as a server would. Return warnings and bodies of events. Raises ``MappingError``."""
    tables = inspect(connection, settings.tables)
    newest = list(rows.newest_rows(connection, settings, tables))
    findings = list(chain.from_iterable(found.findings for found in newest))
    if problems := [line for weight, line in findings if weight == "problem"]:
        raise MappingError(problems)
    in_turn = filter(None, chain.from_iterable(zip_longest(*(found.bodies for found in newest))))
    warnings = [line for _, line in findings]
    if connection.dialect.name == POSTGRES:
        warnings += (f"database.url: {line}" for line in servers.lacks_session(connection))
    return warnings, list(islice(in_turn, EVENTS_MAX))


_HEAD: Final = """\
# Made by `airy-trio init`. Each line has its reason; correct what does not fit.
# `airy-trio check` reports what is wrong. All other settings have their defaults; the reference lists them.
"""
_DELETES: Final = """
# Send a deletion if a message is deleted or a `where` below begins to exclude it, so that it disappears from pages.
[events]
deletes = true
"""
_TAIL: Final = """
# The server listens on 127.0.0.1:8080 and admits every client. To change that:
#[listener]
#host = "0.0.0.0"
#allowed_origins = ["https://chat.example.org"]
#[auth]
#mode = "tokens"
#tokens = { agent = "${AGENT_TOKEN}" }
"""
_WHERE_WHY: Final = "# Excludes messages that clients should not see, judging by the names of these columns.\n"
_CLASSES_WHY: Final = "# Only rows about these classes, those of the newest rows, are sent. Add others that you need.\n"
_CONTENT_WHY: Final = "# What people write is sent as text, even if it looks like JSON.\n"


def text_of(url: str, proposals: Proposals) -> str:
    """Return the settings file. ``url``: as the file refers to it."""
    parts = [_HEAD, f"\n[database]\nurl = {_toml(url)}\n"]
    if any(proposals[kind].where for kind in KINDS if kind in DELETABLE):
        parts.append(_DELETES)
    parts += (_section(kind, proposals[kind]) for kind in KINDS)
    return "".join([*parts, _TAIL])


def lines_of(proposal: Proposal) -> Iterator[str]:
    """Yield a mapping for people: the table, and each field with its column or constant and the reason."""
    table = "no table" if proposal.table is None else f'table "{proposal.table.label}"'
    yield f"{proposal.kind:<9} {table}: {proposal.why}"
    for name, source in proposal.sources.items():
        origin = _toml(source.constant) if source.column is None else source.column
        yield f"  {name:<18} {origin:<24} {_why(source)}"
    if proposal.where:
        yield f"  {'where':<18} {proposal.where}"


def _section(kind: Kind, proposal: Proposal) -> str:
    table = proposal.table
    lines = [f"\n[database.tables.{kind}]\n# {one_line(proposal.why)}\n"]
    if table is None:
        return "".join([*lines, 'name = ""\n'])
    if table.label != kind:
        is_plain = table.label.count(".") == (0 if table.visible else 1)  # a text is split at its first dot
        pair = f"[{_toml(table.schema or 'main')}, {_toml(table.name)}]"
        lines.append(f"name = {_toml(table.label) if is_plain else pair}\n")
    if proposal.where:
        why = _CLASSES_WHY if kind == "metadata" else _WHERE_WHY
        lines.append(f"{why}where = {_toml(proposal.where)}\n")
    if proposal.content != "auto":
        lines.append(f"{_CONTENT_WHY}content = {_toml(proposal.content)}\n")
    sources = proposal.sources.items()
    columns = {name: (_toml(one.column), _why(one)) for name, one in sources if one.column not in (None, name)}
    constants = {name: (_toml(one.constant), one.why) for name, one in sources if one.column is None}
    values = {name: (_inline({**one.values, **one.unseen}), "column = event") for name, one in sources if one.values}
    for part, settings in (("columns", columns), ("constants", constants), ("values", values)):
        lines += _part(f"database.tables.{kind}.{part}", settings)
    return "".join(lines)


def _part(path: str, settings: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    if settings:
        yield f"\n[{path}]\n"
        width = max(len(f"{name} = {value}") for name, (value, _) in settings.items())
        for name, (value, why) in settings.items():
            yield f"{f'{name} = {value}':<{min(width, 60)}}   # {one_line(why)}\n"


def _why(source: Source) -> str:
    meanings = ", ".join(f"{theirs} = {_toml(ours)}" for theirs, ours in source.values.items())
    return f"{source.why}: {meanings}" if meanings else source.why


def _inline(values: Mapping[str, Scalar]) -> str:
    return f"{{ {', '.join(f'{_toml(theirs)} = {_toml(ours)}' for theirs, ours in values.items())} }}"


def _toml(value: Scalar | None) -> str:
    """Return a value as TOML, which for these types is the same as JSON."""
    return json.dumps(value, ensure_ascii=False)
