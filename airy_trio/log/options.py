"""The settings of the event log: which store keeps it and where, for how long, and how much stays in memory."""

from typing import Final

from attrs import field, frozen

from airy_trio.database import POSTGRES, SQLITE, canonical_url, sqlite_path
from airy_trio.options import at_least, matching

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
