"""What may stand in the options whose own layer cannot tell: URLs, time zones, names of tables; and which are secret.

Bounds of numbers stand with their options. Nothing here opens a database: what only it can tell is told at start.

What in ``[auth]`` does not go together. No line has a part of a secret; no file is opened here.

Where we may write and where events are kept: options of several sections that do not go together.

Options of different sections that do not go together; those of one section are in ``bounds``.
"""

import re
import zoneinfo
from collections.abc import Iterator
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import sqlalchemy as sa
from attrs import Attribute, fields
from sqlalchemy.exc import ArgumentError

from airy_trio.admin.server import AdminOptions
from airy_trio.auth.key_sources import KeyUrl
from airy_trio.auth.keys import SECRET_BYTES_MIN
from airy_trio.auth.users import SECRET_ALGORITHMS, AuthOptions
from airy_trio.capture.feed import OVERLAP_S, ChangesOptions
from airy_trio.capture.mapping import TableOptions, TablesOptions
from airy_trio.database import POSTGRES, SQLITE, DatabaseOptions, sqlite_path
from airy_trio.events.translate import EventsOptions
from airy_trio.log.options import BUILT_IN, LogOptions
from airy_trio.options import NotAllowedError, Validator, satisfying
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.websocket import admission

_DEFAULTS: Final = AuthOptions()
_OF_WEB_TOKENS: Final = tuple(option.name for option in fields(AuthOptions) if option.name.startswith("jwt_"))


def auth_contradictions(options: AuthOptions) -> Iterator[str]:
    """Options that leave nobody in, let everybody in by mistake, or do nothing: each as a line without its section."""
    mode = options.mode
    if mode == "tokens" and not options.tokens:
        yield 'mode is "tokens", but there are none: nobody could connect'
    if mode == "none" and options.tokens:
        yield 'there are tokens, but mode is "none": everybody could connect'
    if mode == "jwt" and options.tokens:
        yield 'there are tokens, but mode is "jwt": none of them would be looked at'
    if mode == "none" and options.cookie:
        yield 'cookie says where a token is, but mode is "none": everybody could connect'
    if mode == "jwt":
        yield from _of_web_tokens(options)
        return
    idle = [name for name in _OF_WEB_TOKENS if getattr(options, name) != getattr(_DEFAULTS, name)]
    if idle:
        yield f'{", ".join(idle)}: of mode = "jwt", but mode is "{mode}"'


def between(auth: AuthOptions, listener: ListenerOptions) -> Iterator[str]:
    """What of two sections does not go together, each as a line with both names."""
    if auth.cookie and admission.ANY in listener.allowed_origins:
        yield (
            'auth.cookie, listener.allowed_origins: browsers send cookies along from every page, and "*" lets every '
            "page in: any page that a user visits could read what that user may"
        )


def _of_web_tokens(options: AuthOptions) -> Iterator[str]:
    channels, destinations = options.grant_claims
    if channels == destinations:
        yield f'jwt_channels_claim and jwt_destinations_claim are both "{channels}": neither could be granted alone'
    shared = [name for name in options.jwt_algorithms if name in SECRET_ALGORITHMS]
    if shared and len(shared) < len(options.jwt_algorithms):
        yield (
            "jwt_algorithms: HS* with others: one key cannot be both a secret and public, and whoever has a public key "
            "could sign with it"
        )
    elif not options.jwt_key:
        what = "the secret" if shared else "a file or an https:// URL of public keys"
        yield f'mode is "jwt", which needs jwt_key: {what}'
    elif shared:
        yield from _of_secret(options.jwt_key, max(SECRET_BYTES_MIN[name] for name in shared), shared)
    else:
        yield from _of_place(options.jwt_key)


def _of_secret(secret: str, bytes_min: int, names: list[str]) -> Iterator[str]:
    if secret.startswith(("https://", "http://")) or "-----BEGIN" in secret:
        yield "jwt_key: with HS* it is the secret itself, but this is a URL or a key in PEM"
    elif len(secret.encode()) < bytes_min:
        yield f"jwt_key: the secret of {', '.join(names)} needs at least {bytes_min} bytes (RFC 7518, section 3.2)"


def _of_place(place: str) -> Iterator[str]:
    if "-----BEGIN" in place:
        yield "jwt_key: this is a key itself; it belongs in a file, whose name stands here"
    elif place.startswith("http://"):
        yield "jwt_key: keys are fetched over https:// only: over http:// anybody on the way could put in their own"
    elif place.startswith("https://"):
        yield from _of_url(place)
    elif "\0" in place:
        yield "jwt_key: this is no file name"


def _of_url(text: str) -> Iterator[str]:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
        KeyUrl.of(text)
    except ValueError:  # UnicodeError too: a name that IDNA does not know
        host, port = None, None
    if not host or port == 0 or not text.isprintable() or " " in text:
        yield "jwt_key: an https:// URL that cannot be read"
    elif "@" in text:
        yield "jwt_key: a URL with a user or a password, which a server of public keys does not need"


def place_contradictions(
    database: DatabaseOptions, tables: TablesOptions, changes: ChangesOptions, events: EventsOptions, log: LogOptions
) -> Iterator[str]:
    """Options that do not go together, each as a line that names them all, free of secrets."""
    yield from _own_file(database, log)
    if changes.reads_only:
        if log.store == "sql" and _is_same_postgres(database, log):
            yield (
                'log.url: changes.capture = "updated_at" writes nothing into the database of database.url, so the '
                "events need another place: an SQLite file or another database here, or another log.store"
            )
        if events.deletes and not (tables.messages.where or tables.tags.where):
            yield (
                'events.deletes: changes.capture = "updated_at" cannot see that a row was deleted; allowed only where '
                "database.tables.messages.where or database.tables.tags.where leaves out what is marked as deleted"
            )


def _own_file(database: DatabaseOptions, log: LogOptions) -> Iterator[str]:
    """The application must never meet a lock because of us, so its file is not for our events."""
    if log.store != "sql" or not log.url.startswith(SQLITE) or not database.url.startswith(SQLITE):
        return
    if sqlite_path(log.url).resolve() == sqlite_path(database.url).resolve():
        yield 'log.url: this is the application\'s own file (database.url); name another one, or "" for one beside it'


def _is_same_postgres(database: DatabaseOptions, log: LogOptions) -> bool:
    if not database.url.startswith(POSTGRES):
        return False
    location = _without_driver(log.location(database.url))
    return location in (_without_driver(url) for url in (database.url, database.direct_url) if url)


def _without_driver(url: str) -> sa.URL:
    """A URL to compare: the driver may be left out."""
    return sa.make_url(url).set(drivername=sa.make_url(url).get_backend_name())


PORT_MAX: Final = 65535


class Sections(Protocol):
    """As much of the settings as is looked at here."""

    @property
    def log(self) -> LogOptions:
        """``[log]``."""
        ...

    @property
    def listener(self) -> ListenerOptions:
        """``[listener]``."""
        ...

    @property
    def admin(self) -> AdminOptions:
        """``[admin]``."""
        ...


def settings_contradictions(settings: Sections) -> Iterator[str]:
    """Give a line for each pair, with the path of both options."""
    workers, port, last = settings.listener.workers, settings.admin.port, settings.listener.processes - 1
    if workers == 1:
        return
    if settings.log.store == "memory":
        yield f'listener.workers is {workers}, but log.store is "memory", which one process alone can have'
    if port and port + last > PORT_MAX:
        yield f"listener.workers is {workers}, but admin.port + {last}, of the process that records, is no port"
    if port and port <= settings.listener.port <= port + last:
        yield (
            f"listener.port is {settings.listener.port}, but admin.port to admin.port + {last} are the admin ports of "
            f"the {workers} of listener.workers and of the process that records"
        )


POSTGRES_DRIVERS: Final = ("postgresql", "postgresql+psycopg", "postgres")
SQLITE_DRIVERS: Final = ("sqlite", "sqlite+pysqlite")
REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
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


def section_contradictions(options: object) -> Iterator[str | NotAllowedError]:
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
            yield from auth_contradictions(options)
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
