"""Checks of settings that the options classes cannot make: values, sections, and options of different sections.

Bounds of numbers are declared with the options. The checks here need other packages (URLs, time zones), or several
options at once. None opens a database or a file; what depends on those is checked at start. No message shows a part of
a secret.
"""

import re
import zoneinfo
from collections.abc import Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import sqlalchemy as sa
from attrs import Attribute, fields
from sqlalchemy.exc import ArgumentError

from airy_trio.admin.server import PORT_MAX, AdminOptions
from airy_trio.auth.keys import SECRET_BYTES_MIN
from airy_trio.auth.users import SECRET_ALGORITHMS, AuthOptions
from airy_trio.capture.feed import OVERLAP_S, ChangesOptions
from airy_trio.capture.mapping import DELETABLE, KINDS, TableOptions
from airy_trio.database import POSTGRES, POSTGRES_DRIVERS, SQLITE, SQLITE_DRIVERS, DatabaseOptions, sqlite_path
from airy_trio.log.options import BUILT_IN, LogOptions
from airy_trio.options import NotAllowedError, Validator, satisfying
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.websocket import admission
from airy_trio.websocket.event_stream import is_stream_path

if TYPE_CHECKING:
    from airy_trio.settings import Settings

_POSTGRES_WORDS: Final = "postgresql://USER@HOST/DATABASE"
_URL_WORDS: Final = BUILT_IN["sql"].url
_LOG_WORDS: Final = ", ".join(store.url for store in BUILT_IN.values() if store.url) + ', or ""'
_LOG_STORES: Final = {scheme: name for name, store in BUILT_IN.items() for scheme in store.schemes}
_FOREIGN: Final = frozenset({
    "postgresql+asyncpg", "postgresql+psycopg2", "postgresql+pg8000", "sqlite+aiosqlite",
    "sqlite+pysqlcipher", "sqlite3", "file", "mysql", "mysql+pymysql", "mysql+mysqldb", "mariadb", "oracle",
    "mssql", "mssql+pyodbc", "cockroachdb", "redis", "rediss", "mongodb", "jdbc", "http", "https",
})  # fmt: skip
"""Schemes that a message may show. Other text before ``://`` may be a password that was put there by mistake."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_ANY_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\x00-\x1f\x7f]*")


def _url_of(drivers: tuple[str, ...], allowed: str, *, optional: bool = False) -> Validator:
    """Make a validator: a URL with one of these drivers. ``optional``: an empty string is allowed too."""

    def validate(_instance: object, option: "Attribute[Any]", url: str) -> None:
        fault = None if optional and not url else _url_fault(url, drivers)
        if fault is not None:
            raise NotAllowedError(option.name, allowed, fault)

    return validate


def _url_fault(text: str, drivers: Collection[str]) -> str | None:
    """Return what is wrong with a URL, or None. Of the URL, at most a known scheme is shown."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        return "a string that is not a URL" if text else "an empty string"
    if scheme not in drivers:
        is_known = scheme in _FOREIGN or scheme in POSTGRES_DRIVERS or scheme in SQLITE_DRIVERS
        return f"a {scheme}:// URL" if is_known else "a URL of another kind"
    try:
        url = None if _CONTROL.search(text) else sa.make_url(text)
    except (ArgumentError, ValueError):  # their messages show the URL
        url = None
    if url is None:
        return "a URL that cannot be read"
    on_sqlite = scheme in SQLITE_DRIVERS
    faults = (
        (on_sqlite and "?" in text, 'an SQLite URL with "?" (it takes no options)'),
        (on_sqlite and (url.host is not None or url.username is not None or url.port is not None),
         "an SQLite URL with a host (a relative path follows three slashes, an absolute one four)"),
        (on_sqlite and url.database in (None, "", ":memory:"),
         "an SQLite URL without a file (a database in memory belongs to one process)"),
        (on_sqlite and str(url.database).startswith("file:"), "an SQLite URL with file: (write the path alone)"),
        # Otherwise a later error would show a part of the password as the host.
        (not on_sqlite and "@" in (url.host or ""), "a URL with two @ (in a password write %40)"),
        (not on_sqlite and url.port is not None and not 0 < url.port <= PORT_MAX, f"a port outside 1 to {PORT_MAX}"),
    )  # fmt: skip
    return next((words for applies, words in faults if applies), None)


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not the name of a zone; a directory of zones
        return False
    return True


def _is_table_name(name: str | list[str] | None) -> bool:
    """Accept None and "", which have a meaning, and otherwise a name whose parts are not empty."""
    if name is None or name == "":
        return True
    parts = name.split(".", 1) if isinstance(name, str) else name
    return (isinstance(name, str) or len(parts) == 2) and all(part and not _CONTROL.search(part) for part in parts)  # noqa: PLR2004 - schema and table


CHECKS: Final[dict[tuple[type, str], Validator]] = {
    (DatabaseOptions, "url"): _url_of((*SQLITE_DRIVERS, *POSTGRES_DRIVERS), _URL_WORDS),
    (DatabaseOptions, "direct_url"): _url_of(POSTGRES_DRIVERS, f'{_POSTGRES_WORDS}, or ""', optional=True),
    (TableOptions, "name"): satisfying(_is_table_name, '"table", "schema.table", ["schema", "table"] or ""'),
    (TableOptions, "time_zone"): satisfying(_is_zone, "a name of the time zone database, such as Europe/Berlin"),
}
"""Validators in addition to those that the options classes declare."""

REQUIRED: Final[dict[tuple[type, str], str]] = {(DatabaseOptions, "url"): _URL_WORDS}
"""Options without a default, and the description of the allowed values."""

SECRETS: Final = frozenset({
    (DatabaseOptions, "url"), (DatabaseOptions, "direct_url"), (LogOptions, "url"), (AuthOptions, "tokens"),
    (ListenerOptions, "tls_key"),  # the key itself may be put there by mistake
    (AuthOptions, "jwt_key"), (AdminOptions, "token"),
})  # fmt: skip
"""Options whose values no message shows."""


def section_contradictions(options: object) -> Iterator[str | NotAllowedError]:
    """Check the options of one section together. Yield lines without the section, or the error of one option."""
    match options:
        case DatabaseOptions() if options.direct_url and options.url.partition("://")[0] in SQLITE_DRIVERS:
            yield "direct_url is for PostgreSQL behind a pooler, but url is an SQLite URL"
        case ChangesOptions(capture="triggers") if options.overlap_s != OVERLAP_S:
            yield 'overlap_s is for capture = "updated_at", but capture is "triggers"'
        case LogOptions():
            yield from _log_contradictions(options)
        case ListenerOptions() if bool(options.tls_certificate) != bool(options.tls_key):
            yield f"only {'tls_certificate' if options.tls_certificate else 'tls_key'} is set, but TLS needs both"
        case AuthOptions():
            yield from _auth_contradictions(options)
        case AdminOptions() if options.port and not options.token and not admission.is_loopback(options.host):
            yield "host is not a loopback address, so set a token: every client that reaches the port could read it"
        case _:
            return


def _log_contradictions(options: LogOptions) -> Iterator[str | NotAllowedError]:
    if options.retain_durables_s < options.retain_s:
        yield "retain_durables_s is less than retain_s, but a position must be retained as long as the events after it"
    url, store = options.url, BUILT_IN.get(options.store)
    scheme, separator, _ = url.partition("://")
    named = _LOG_STORES.get(scheme)
    if store is None:
        if url and not _ANY_URL.fullmatch(url):
            allowed = 'SCHEME://ANYTHING without control characters, or ""'
            yield NotAllowedError("url", allowed, "a string that is not a URL")
        return
    if url and (fault := _url_fault(url, _LOG_STORES)):
        other = "; for another event store set log.store too" if separator and named is None else ""
        yield NotAllowedError("url", _LOG_WORDS + other, fault)
    elif named == options.store:
        return
    elif store.place:
        yield f'store is "{options.store}", which needs url = "{store.url}"'
    elif options.url:
        yield f'url is for store = "{named}", but store is "{options.store}"'


_AUTH_DEFAULTS: Final = AuthOptions()
_JWT_OPTIONS: Final = tuple(option.name for option in fields(AuthOptions) if option.name.startswith("jwt_"))


def _auth_contradictions(options: AuthOptions) -> Iterator[str]:
    """Yield a line for options that admit no client, admit every client by mistake, or have no effect."""
    mode = options.mode
    if mode == "tokens" and not options.tokens:
        yield 'mode is "tokens", but there are no tokens: no client could connect'
    if mode == "none" and options.tokens:
        yield 'there are tokens, but mode is "none": every client could connect'
    if mode == "jwt" and options.tokens:
        yield 'there are tokens, but mode is "jwt": they would be ignored'
    if mode == "none" and options.cookie:
        yield 'cookie is set, but mode is "none": every client could connect'
    if mode == "jwt":
        yield from _jwt_contradictions(options)
        return
    idle = [name for name in _JWT_OPTIONS if getattr(options, name) != getattr(_AUTH_DEFAULTS, name)]
    if idle:
        yield f'{", ".join(idle)}: only for mode = "jwt", but mode is "{mode}"'


def _jwt_contradictions(options: AuthOptions) -> Iterator[str]:
    channels, destinations = options.grant_claims
    if channels == destinations:
        yield f'jwt_channels_claim and jwt_destinations_claim are both "{channels}": neither could be granted alone'
    key, shared = options.jwt_key, [name for name in options.jwt_algorithms if name in SECRET_ALGORITHMS]
    if shared:
        bytes_min = max(SECRET_BYTES_MIN[name] for name in shared)
        faults: Collection[tuple[bool, str]] = (
            (len(shared) < len(options.jwt_algorithms),
             ("jwt_algorithms: HS* with others: the public key would also be the secret of HS*, and anyone with it "
              "could sign tokens")),
            (not key, 'mode is "jwt", which needs jwt_key: the secret'),
            (key.startswith(("https://", "http://")) or "-----BEGIN" in key,
             "jwt_key: HS* needs the secret itself, but this is a URL or a PEM key"),
            (len(key.encode()) < bytes_min,
             f"jwt_key: the secret of {', '.join(shared)} needs at least {bytes_min} bytes (RFC 7518, section 3.2)"),
        )  # fmt: skip
    else:
        is_url = key.startswith("https://")
        faults = (
            (not key, 'mode is "jwt", which needs jwt_key: a file or an https:// URL of public keys'),
            ("-----BEGIN" in key, "jwt_key: this is a key; put it in a file and set jwt_key to the name of the file"),
            (key.startswith("http://"),
             "jwt_key: keys are fetched over https:// only, because http:// lets others on the network replace them"),
            (is_url and not _is_valid_url(key), "jwt_key: not a valid https:// URL"),
            (is_url and "@" in key, "jwt_key: the URL has a user or a password, but public keys need neither"),
            ("\0" in key, "jwt_key: not a file name"),
        )  # fmt: skip
    yield from islice((line for applies, line in faults if applies), 1)


def _is_valid_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        host = (url.hostname or "").encode("idna") if url.port != 0 else b""
    except ValueError:  # includes UnicodeError: a name that IDNA cannot encode
        return False
    return bool(host) and text.isprintable() and " " not in text


def contradictions(settings: "Settings") -> Iterator[str]:
    """Yield a line for options of different sections that contradict each other. Each line names all of them."""
    database, changes, log, listener, admin = (
        settings.database, settings.changes, settings.log, settings.listener, settings.admin,
    )  # fmt: skip
    workers, port, last = listener.workers, admin.port, listener.processes - 1
    are_files = log.store == "sql" and log.url.startswith(SQLITE) and database.url.startswith(SQLITE)
    is_one_file = are_files and sqlite_path(log.url).resolve() == sqlite_path(database.url).resolve()
    wheres = " or ".join(f"database.tables.{kind}.where" for kind in KINDS if kind in DELETABLE)
    found = (
        (settings.auth.cookie and admission.ANY in listener.allowed_origins,
         ('auth.cookie, listener.allowed_origins: browsers send cookies from every page and "*" accepts every page, '
          "so any page that a user visits could read what that user may read")),
        (is_stream_path(listener.path, listener.sse_path),
         (f"listener.path, listener.sse_path: {listener.path} would be an event stream as well as the WebSocket; "
          'change one of them, or set sse_path = ""')),
        (workers == 1 and port and (admin.host, port) == (listener.host, listener.port),
         f"listener.port, admin.port: both are {port}, on the same host"),
        (workers > 1 and log.store == "memory",
         f'listener.workers is {workers}, but log.store is "memory", which belongs to one process'),
        (workers > 1 and port and port + last > PORT_MAX,
         f"listener.workers is {workers}, but admin.port + {last}, of the recorder process, exceeds {PORT_MAX}"),
        (workers > 1 and port and port <= listener.port <= port + last,
         (f"listener.port is {listener.port}, but admin.port to admin.port + {last} are the admin ports of the "
          f"{workers} workers and of the recorder process")),
        (is_one_file,  # our writes would lock the application's file
         'log.url: this is the application\'s file (database.url); name another file, or "" for one next to it'),
        (changes.reads_only and database.url.startswith(POSTGRES) and settings.log_is_here,
         ('log.url: changes.capture = "updated_at" writes nothing to the database of database.url, so the events need '
          "another place: an SQLite file or another database, or another log.store")),
        (changes.reads_only and settings.events.deletes and not any(settings.tables.of(k).where for k in DELETABLE),
         ('events.deletes: changes.capture = "updated_at" does not detect deleted rows; allowed only if '
          f"{wheres} excludes rows that are marked as deleted")),
    )  # fmt: skip
    return (line for applies, line in found if applies)
