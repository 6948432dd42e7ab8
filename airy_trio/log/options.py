"""The settings of the event log: which store keeps it and where, for how long, and how much stays in memory.

Finds the event store that the settings name: one of ours, or one that an installed package brings.

A package names its store in the entry-point group ``airy_trio.event_stores``: under the store's name, a function that
takes ``[log] url`` (which may be empty) and gives an async context manager, inside which there is the store. Its author
checks it with ``airy_trio.testing.event_store``. Knows no store; is told which are ours.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from attrs import field, frozen

from airy_trio.database import POSTGRES, SQLITE, canonical_url, sqlite_path
from airy_trio.errors import SettingsError
from airy_trio.log.store import EventStore
from airy_trio.options import at_least, matching

GROUP: Final = "airy_trio.event_stores"

OpenEventStore = Callable[[str], AbstractAsyncContextManager[EventStore]]
"""Opens the store at a URL for the length of a block. What is raised inside may come out in an exception group."""


def find_store(name: str, ours: Mapping[str, str]) -> OpenEventStore:
    """Find the store of this name. ``ours``: the names of our own, and where each is (``module:function``).

    Raises ``SettingsError`` where there is none, or what it needs is not installed.
    """
    installed = {name: EntryPoint(name, where, GROUP) for name, where in ours.items()}
    found = {entry.name: entry for entry in entry_points(group=GROUP)} | installed
    if name not in found:
        known = ", ".join(sorted({"memory", "sql", *found}))
        raise SettingsError([f'log.store: there is no event store "{name}", there are {known}'])
    try:
        opened: OpenEventStore = found[name].load()
    except ImportError as error:
        extra = f"; pip install airy-trio[{name}]" if name in ours else ""
        raise SettingsError([f'log.store: "{name}" needs what is not installed: {error}{extra}']) from None
    return opened


BUILT_IN: Final = ("memory", "sql", "redis")
"""The stores that need no other package. Any other name is the name of an entry point."""
STORE_WORDS: Final = '"memory", "sql", "redis" or the name of an installed event store'


@frozen(kw_only=True)
class LogOptions:
    """Where events are kept, for how long, and how many of the newest stay in memory (settings, ``[log]``).

    ``retain_durables_s``: for how long the position of a durable subscription that nobody uses is kept; at least
    ``retain_s``. Much longer by default, so that a client that returns late learns that events are gone.
    """

    store: str = field(default="sql", validator=matching(r"[a-z][a-z0-9_.-]{0,40}", STORE_WORDS))
    url: str = ""
    retain_s: float = field(default=86400, validator=at_least(1))
    retain_events: int = field(default=1_000_000, validator=at_least(1))
    retain_durables_s: float = field(default=31_536_000, validator=at_least(1))
    tail_events: int = field(default=20_000, validator=at_least(1))
    tail_bytes: int = field(default=16 * 1024 * 1024, validator=at_least(1))

    def location(self, database_url: str) -> str:
        """Return the URL of the ``sql`` store: ``url``, the application's Postgres, or a file next to its SQLite file.

        Not for other stores: they get ``url`` unchanged, and what it may look like is for them to say.
        """
        if self.url or database_url.startswith(POSTGRES):
            return canonical_url(self.url) or database_url
        return f"{SQLITE}:///{sqlite_path(database_url)}.airy-trio.db"
