"""The settings file: from TOML to frozen options classes, with every fault reported at once.

Each package declares its own options; this one gathers them. A key that no package declares is an error, so no setting
is accepted that has no effect.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from attrs import Factory, frozen

from airy_trio.admin.server import AdminOptions
from airy_trio.auth.users import AuthOptions
from airy_trio.capture.feed import ChangesOptions
from airy_trio.capture.mapping import DELETABLE, KINDS, TablesOptions
from airy_trio.database import POSTGRES, SQLITE, DatabaseOptions, shown, sqlite_path
from airy_trio.delivery.client import ReplayOptions
from airy_trio.errors import SettingsError
from airy_trio.events.models import MessageUpdated
from airy_trio.events.translate import EventsOptions
from airy_trio.log.options import BUILT_IN, LogOptions
from airy_trio.options import PORT_MAX
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.settings.reader import read
from airy_trio.websocket.admission import ANY, is_loopback
from airy_trio.websocket.event_stream import is_stream_path

FILE_BYTES_MAX: Final = 1024 * 1024
TOKEN_CHARS_MIN: Final = 16
"""A client token with fewer characters causes a warning."""


@frozen(kw_only=True)
class LoggingOptions:
    """The log on stderr (``[logging]``). ``auto``: console on a terminal, else JSON lines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


@frozen(kw_only=True)
class DatabaseSection(DatabaseOptions):
    """``[database]``, which has the tables below it."""

    tables: TablesOptions = Factory(TablesOptions)


@frozen(kw_only=True)
class Settings:
    """All options, with the sections in the order of the data flow, as in the file."""

    database: DatabaseSection
    changes: ChangesOptions = Factory(ChangesOptions)
    events: EventsOptions = Factory(EventsOptions)
    log: LogOptions = Factory(LogOptions)
    replay: ReplayOptions = Factory(ReplayOptions)
    listener: ListenerOptions = Factory(ListenerOptions)
    auth: AuthOptions = Factory(AuthOptions)
    admin: AdminOptions = Factory(AdminOptions)
    logging: LoggingOptions = Factory(LoggingOptions)

    @property
    def tables(self) -> TablesOptions:
        """The mapping: ``[database.tables]``."""
        return self.database.tables

    def exposures(self) -> Iterator[str]:
        """Yield a line for each group of options that is allowed, but lets others read events."""
        auth, host = self.auth, self.listener.host
        if auth.mode == "none" and not is_loopback(host):
            yield (
                f'auth.mode is "none" and listener.host is "{host}", not a loopback address: every client that reaches '
                "the port receives all events"
            )
        short = [name for name, token in auth.tokens.items() if len(token) < TOKEN_CHARS_MIN]
        if short:
            yield f"auth.tokens: tokens of fewer than {TOKEN_CHARS_MIN} characters may be guessed: {', '.join(short)}"

    @property
    def logs_deletes(self) -> bool:
        """Whether deletions of messages are logged even where that takes a step of its own, such as TRUNCATE.

        They are either events, or end the current state of the messages.
        """
        return self.events.deletes or MessageUpdated.type in self.log.keep_current

    @property
    def log_url(self) -> str:
        """The URL of the database of an ``sql`` store."""
        return self.log.location(self.database.url)

    @property
    def log_words(self) -> str:
        """The place of the event store, without secrets.

        For a store of another package it is only the name, because its URL may have a secret anywhere.
        """
        match self.log.store:
            case "memory":
                return f"the memory of process {os.getpid()}"
            case "sql":
                return shown(self.log_url)
            case store:
                return shown(self.log.url) if store in BUILT_IN else store

    @property
    def log_is_shareable(self) -> bool:
        """Whether the settings of another database could name the same event log by mistake.

        Neither the default place, next to the application's tables, nor a store in memory can be shared.
        """
        if self.log.store == "sql":
            return bool(self.log.url) and not self.log_is_here
        return self.log.store != "memory"

    @property
    def log_is_here(self) -> bool:
        """Whether events are stored in the application's database itself."""
        if self.log.store != "sql":
            return False
        urls = (self.database.url, self.database.direct_url)
        return _without_driver(self.log_url) in (_without_driver(url) for url in urls if url)


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read the settings file. Raises ``SettingsError`` with every fault, or with the reason why it cannot be read.

    Resource handling: the file is closed on return; at most ``FILE_BYTES_MAX`` of it are read.
    """
    return parse(_text_of(path), environ, name=str(path))


def parse(text: str, environ: Mapping[str, str], *, name: str = "the settings") -> Settings:
    """Read settings from TOML text, with ``${NAME}`` replaced from ``environ``. ``name`` names the text in messages.

    Raises ``SettingsError`` with one line for each fault, free of secrets.
    """
    document = _toml(text, name)
    document.setdefault("database", {})  # then database.url is reported as missing, not the section
    settings, faults = read(document, Settings, environ)
    if settings is not None:
        faults = list(contradictions(settings))
    if settings is None or faults:
        raise SettingsError(faults)
    return settings


def contradictions(settings: Settings) -> Iterator[str]:
    """Yield a line for options of different sections that contradict each other. Each line names all of them."""
    database, changes, log, listener, admin = (
        settings.database, settings.changes, settings.log, settings.listener, settings.admin,
    )  # fmt: skip
    workers, port, last = listener.workers, admin.port, listener.processes - 1
    are_files = log.store == "sql" and log.url.startswith(SQLITE) and database.url.startswith(SQLITE)
    is_one_file = are_files and sqlite_path(log.url).resolve() == sqlite_path(database.url).resolve()
    wheres = " or ".join(f"database.tables.{kind}.where" for kind in KINDS if kind in DELETABLE)
    found = (
        (settings.auth.cookie and ANY in listener.allowed_origins,
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


def _without_driver(url: str) -> sa.URL:
    """Return a URL that compares equal if only the driver differs."""
    return sa.make_url(url).set(drivername=sa.make_url(url).get_backend_name())


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) <= FILE_BYTES_MAX:
            return data.decode("utf-8-sig")  # some editors write a byte order mark
        fault = f"larger than {FILE_BYTES_MAX} bytes, not a settings file"
    except FileNotFoundError:
        fault = "there is no such file"
    except IsADirectoryError:
        fault = "this is a directory, not a settings file"
    except OSError as error:
        fault = f"the file cannot be read: {error.strerror or type(error).__name__}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        fault = f"not UTF-8 (at line {line})"
    except ValueError:
        fault = "not a file name"
    raise SettingsError([f"{_printable(str(path))}: {fault}"])


def _toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        fault = str(error)
    except RecursionError:
        fault = "nested too deeply"
    except ValueError:  # an integer with more digits than Python converts
        fault = "a value that cannot be read"
    raise SettingsError([f"{_printable(name)}: not TOML: {_printable(fault)}"])


def _printable(text: str) -> str:
    """Escape what would break the line, such as a newline in a file name."""
    return text if text.isprintable() else ascii(text)
