"""Where a verification happens: tables, change log and event log of its own, which go when it ends.

A run that was killed leaves its place behind; the next one finds it by its name, sees by a lock that nobody is in it,
and clears it away. A running server's tables and change log are never touched.
"""

import contextlib
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from airy_trio.admin.server import AdminOptions
from airy_trio.changes.feed import ChangesOptions
from airy_trio.changes.tables import MessagesOptions, TableOptions, TablesOptions
from airy_trio.database import DatabaseOptions
from airy_trio.events.translate import EventsOptions
from airy_trio.log.options import LogOptions
from airy_trio.settings import Settings
from airy_trio.verify.connections import Connection
from airy_trio.websocket.listener import ListenerOptions

HEX_DIGITS: Final = 8
EVENTS: Final = EventsOptions(deletes=True)


class Scratch(Protocol):
    """One place, once it is made. ``connect`` and ``cut`` are called from several threads."""

    settings: Settings
    """Of a server on it."""
    words: str
    """Where it is, for a person."""
    change: str
    """The statement that makes an object, or its version one greater, and gives the version."""
    delete: str
    """The statement that deletes an object."""
    everything: str
    """The statement that gives every object with its version."""
    long_max_s: float
    """How long a transaction may stay open without holding up all others."""

    def connect(self, *, spared: bool = False) -> Connection:
        """Open a connection of the application. ``spared``: one that ``cut`` leaves alone."""
        ...

    def forget(self, connection: Connection) -> None:
        """Close it."""
        ...

    def cut(self, *, recorder: bool) -> Iterator[str]:
        """Cut a connection: of whoever records, or of a writer. Tells what was cut."""
        ...


class Writers:
    """The connections that may be cut."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Connection] = []

    def add(self, connection: Connection) -> None:
        """Take one in."""
        with self._lock:
            self._open.append(connection)

    def remove(self, connection: Connection) -> None:
        """Let one go. Idempotent."""
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(connection)

    def pick(self) -> Connection | None:
        """One of them at random; None where there is none."""
        with self._lock:
            return secrets.choice(self._open) if self._open else None


class Place:
    """The statements for a table, and the connections of the application. What is left of ``Scratch`` is to cut them.

    ``opened`` opens a connection.
    """

    def __init__(self, settings: Settings, table: str, words: str, opened: Callable[[], Connection]) -> None:
        self._opened = opened
        self._writers = Writers()
        self.settings = settings
        self.words = words
        self.change = (
            f"insert into {table} (id, name, color) values (?, '1', 'red') "  # noqa: S608 - a name of ours
            "on conflict (id) do update set name = cast(cast(tags.name as integer) + 1 as text) returning name"
        )
        self.delete = f"delete from {table} where id = ?"  # noqa: S608 - names quoted
        self.everything = f"select id, name from {table}"  # noqa: S608 - names quoted

    def connect(self, *, spared: bool = False) -> Connection:
        """See ``Scratch.connect``."""
        connection = self._opened()
        if not spared:
            self._writers.add(connection)
        return connection

    def forget(self, connection: Connection) -> None:
        """See ``Scratch.forget``."""
        self._writers.remove(connection)
        connection.close()


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Hear no Ctrl-C for as long as it takes to clear away, which is not long: half of it would stay."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def name() -> str:
    """The part of a place's name that tells it from others."""
    return secrets.token_hex(HEX_DIGITS // 2)


def settings_on(database: DatabaseOptions, table: str | list[str]) -> Settings:
    """Settings of a server on a place: everything of its own, on a port of its own, with our defaults."""
    unmapped = TableOptions(name="")
    return Settings(
        database=database,
        tables=TablesOptions(
            messages=MessagesOptions(name=""), metadata=unmapped, channels=unmapped, tags=TableOptions(name=table)
        ),
        changes=ChangesOptions(),
        events=EVENTS,
        log=LogOptions(),
        listener=ListenerOptions(port=0, drain_s=0),
        admin=AdminOptions(port=0),
    )
