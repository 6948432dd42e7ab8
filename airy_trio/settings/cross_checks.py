"""What may stand in the options whose own layer cannot tell: URLs, time zones, names of tables; and which are secret.

Bounds of numbers stand with their options. Nothing here opens a database: what only it can tell is told at start.
"""

import re
import zoneinfo
from collections.abc import Iterator
from typing import Any, Final

import sqlalchemy as sa
from attrs import Attribute
from sqlalchemy.exc import ArgumentError

from airy_trio.changes.feed import OVERLAP_S, ChangesOptions
from airy_trio.changes.tables import TableOptions
from airy_trio.database import DatabaseOptions
from airy_trio.log.options import BUILT_IN, LogOptions
from airy_trio.options import NotAllowedError, Validator, satisfying
from airy_trio.settings import credentials
from airy_trio.websocket.auth import AuthOptions
from airy_trio.websocket.listener import ListenerOptions

POSTGRES_DRIVERS: Final = ("postgresql", "postgresql+psycopg", "postgres")
SQLITE_DRIVERS: Final = ("sqlite", "sqlite+pysqlite")
REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
PORT_MAX: Final = 65535
_POSTGRES_WORDS: Final = "postgresql://USER@HOST/DATABASE"
_REDIS_WORDS: Final = "redis://HOST"
_URL_WORDS: Final = f"sqlite:///FILE or {_POSTGRES_WORDS}"
_FOREIGN: Final = frozenset({
    "postgresql+asyncpg", "postgresql+psycopg2", "postgresql+pg8000", "sqlite+aiosqlite",
    "sqlite+pysqlcipher", "sqlite3", "file", "mysql", "mysql+pymysql", "mysql+mysqldb", "mariadb", "oracle",
    "mssql", "mssql+pyodbc", "cockroachdb", "redis", "rediss", "mongodb", "jdbc", "http", "https",
})  # fmt: skip
"""Schemes that a fault may name. Any other is not shown: a password may stand before the ``://`` by mistake."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_ANY_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\x00-\x1f\x7f]*")


def _application_url(_instance: object, option: "Attribute[Any]", url: str) -> None:
    _check_url(option.name, url, (*SQLITE_DRIVERS, *POSTGRES_DRIVERS), _URL_WORDS)


def _direct_url(_instance: object, option: "Attribute[Any]", url: str) -> None:
    if url:
        _check_url(option.name, url, POSTGRES_DRIVERS, f'{_POSTGRES_WORDS}, or ""')


def _check_url(name: str, text: str, drivers: tuple[str, ...], allowed: str) -> None:
    """Check a URL; no message has a part of it but a known scheme. Raises ``NotAllowedError``."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        raise NotAllowedError(name, allowed, "a text that is no URL" if text else "an empty text")
    if scheme not in drivers:
        nameable = scheme in _FOREIGN or scheme in POSTGRES_DRIVERS or scheme in SQLITE_DRIVERS
        raise NotAllowedError(name, allowed, f"a {scheme}:// URL" if nameable else "a URL of another kind")
    url = _parsed(text)
    if url is None:
        raise NotAllowedError(name, allowed, "a URL that cannot be read")
    if scheme in SQLITE_DRIVERS:
        fault = 'an SQLite URL with "?" (it takes no options)' if "?" in text else _sqlite_fault(url)
    else:
        fault = _server_fault(url)
    if fault is not None:
        raise NotAllowedError(name, allowed, fault)


def _check_log_url(options: LogOptions) -> None:
    """Check the URL of the event log by the rules of its store. Raises ``NotAllowedError``."""
    name, url = "url", options.url
    if url and options.store in BUILT_IN:
        drivers = (*SQLITE_DRIVERS, *POSTGRES_DRIVERS, *REDIS_SCHEMES)
        _check_url(name, url, drivers, f'{_URL_WORDS}, {_REDIS_WORDS}, or ""')
    elif url and not _ANY_URL.fullmatch(url):
        raise NotAllowedError(name, 'SCHEME://ANYTHING without control characters, or ""', "a text that is no URL")


def _parsed(text: str) -> sa.URL | None:
    try:
        return None if _CONTROL.search(text) else sa.make_url(text)
    except (ArgumentError, ValueError):  # their messages hold the URL
        return None


def _sqlite_fault(url: sa.URL) -> str | None:
    if url.host is not None or url.username is not None or url.port is not None:
        return "an SQLite URL with a host (a relative path follows three slashes, an absolute one four)"
    if url.database in (None, "", ":memory:"):
        return "an SQLite URL without a file (a database in memory is seen by one process only)"
    if str(url.database).startswith("file:"):
        return "an SQLite URL with file: (the path stands alone)"
    return None


def _server_fault(url: sa.URL) -> str | None:
    if "@" in (url.host or ""):  # else a part of the password would be told as the name of a host
        return "a URL with two @ (in a password write %40)"
    if url.port is not None and not 0 < url.port <= PORT_MAX:
        return f"a port outside 1 to {PORT_MAX}"
    return None


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no zone's name; a directory of zones
        return False
    return True


def _is_table_name(name: str | list[str] | None) -> bool:
    """None and "" have their meaning; the parts of a name do not follow case rules, only that there are some."""
    if name is None or name == "":
        return True
    parts = name.split(".", 1) if isinstance(name, str) else name
    return (isinstance(name, str) or len(parts) == 2) and all(part and not _CONTROL.search(part) for part in parts)  # noqa: PLR2004 - schema and table


CHECKS: Final[dict[tuple[type, str], Validator]] = {
    (DatabaseOptions, "url"): _application_url,
    (DatabaseOptions, "direct_url"): _direct_url,
    (TableOptions, "name"): satisfying(_is_table_name, '"table", "schema.table", ["schema", "table"] or ""'),
    (TableOptions, "time_zone"): satisfying(_is_zone, "a name of the time zone database, such as Europe/Berlin"),
}
"""Run beside the validators that the options classes declare."""

REQUIRED: Final[dict[tuple[type, str], str]] = {(DatabaseOptions, "url"): _URL_WORDS}
"""Options without a default, and the words for what may stand there."""

SECRETS: Final = frozenset({
    (DatabaseOptions, "url"), (DatabaseOptions, "direct_url"), (LogOptions, "url"), (AuthOptions, "tokens"),
    (ListenerOptions, "tls_key"),  # somebody may put the key itself there
    (AuthOptions, "jwt_key"),
})  # fmt: skip
"""Options of which no fault shows anything."""


def contradictions(options: object) -> Iterator[str | NotAllowedError]:
    """Check options of one section together: lines without the section, or the fault of one option."""
    match options:
        case DatabaseOptions() if options.direct_url and options.url.partition("://")[0] in SQLITE_DRIVERS:
            yield "direct_url is for PostgreSQL behind a pooler, but url is of SQLite"
        case ChangesOptions(capture="triggers") if options.overlap_s != OVERLAP_S:
            yield 'overlap_s is for capture = "updated_at", but capture is "triggers"'
        case LogOptions():
            yield from _log_contradictions(options)
        case ListenerOptions() if bool(options.tls_certificate) != bool(options.tls_key):
            yield f"there is {'tls_certificate' if options.tls_certificate else 'tls_key'} alone, but TLS needs both"
        case AuthOptions():
            yield from credentials.contradictions(options)
        case _:
            return


def _log_contradictions(options: LogOptions) -> Iterator[str | NotAllowedError]:
    if options.retain_durables_s < options.retain_s:
        yield "retain_durables_s is less than retain_s, but a position must be kept as long as the events after it"
    try:
        _check_log_url(options)
    except NotAllowedError as fault:
        yield fault
        return
    of_redis = options.url.partition("://")[0] in REDIS_SCHEMES
    match options.store:
        case "memory" if options.url:
            yield 'url says where store = "sql" keeps its events, but store is "memory"'
        case "sql" if of_redis:
            yield 'url is of Redis, but store is "sql"'
        case "redis" if not of_redis:
            yield f'store is "redis", which needs url = "{_REDIS_WORDS}"'
        case _:
            return
