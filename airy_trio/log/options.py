"""The settings of the event log, and the event store that they name.

A store is one of ours or comes from an installed package. A package names the function that opens its store
(``OpenEventStore``) in the entry-point group ``airy_trio.event_stores``, under the store's name.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from attrs import field, frozen

from airy_trio.database import (
    POSTGRES,
    POSTGRES_DRIVERS,
    SQLITE_DRIVERS,
    URL_WORDS,
    canonical_url,
    sqlite_path,
    sqlite_url,
    url_fault,
)
from airy_trio.errors import SettingsError
from airy_trio.events.models import STATE_TYPES
from airy_trio.log.store import OpenEventStore
from airy_trio.options import NotAllowedError, at_least, matching, satisfying


@frozen(kw_only=True)
class BuiltIn:
    """A store of ours. ``schemes``: of the URLs that it takes, shown as ``url``; none if it takes no URL.

    ``place``: ``module:function`` that opens it, imported on use, because it needs ``extra``; such a store needs a URL.
    "" if ``app`` opens it from the settings.
    """

    schemes: tuple[str, ...] = ()
    url: str = ""
    place: str = ""
    extra: str = ""


BUILT_IN: Final[Mapping[str, BuiltIn]] = {
    "memory": BuiltIn(),
    "sql": BuiltIn(schemes=(*SQLITE_DRIVERS, *POSTGRES_DRIVERS), url=URL_WORDS),
    "redis": BuiltIn(
        schemes=("redis", "rediss", "unix"),
        url="redis://HOST",
        place="airy_trio.log.redis.store:open_store",
        extra="redis",
    ),
}
"""Our stores by name. Any other name is that of an entry point."""
KEPT_WORDS: Final = "a list of " + ", ".join(f'"{type_}"' for type_ in sorted(STATE_TYPES))
STORE_WORDS: Final = ", ".join(f'"{name}"' for name in BUILT_IN) + " or the name of an installed event store"
GROUP: Final = "airy_trio.event_stores"
_URL_WORDS: Final = ", ".join(store.url for store in BUILT_IN.values() if store.url) + ', or ""'
_STORE_OF: Final = {scheme: name for name, store in BUILT_IN.items() for scheme in store.schemes}


@frozen(kw_only=True)
class LogOptions:
    """Where events are stored, for how long, and how many of the newest stay in memory (settings, ``[log]``).

    ``retain_durables_s``: for how long the position of an unused durable subscription is retained; at least
    ``retain_s``. Much longer by default, so that a client that returns late learns that events are gone.
    ``keep_current``: the types whose current state is kept: the newest event of each object, while the object exists.
    """

    store: str = field(default="sql", validator=matching(r"[a-z][a-z0-9_.-]{0,40}", STORE_WORDS))
    url: str = field(default="", repr=False)
    retain_s: float = field(default=86400, validator=at_least(1))
    retain_events: int = field(default=1_000_000, validator=at_least(1))
    retain_durables_s: float = field(default=31_536_000, validator=at_least(1))
    keep_current: list[str] = field(
        factory=lambda: ["channel.updated", "tag.updated"], validator=satisfying(STATE_TYPES.issuperset, KEPT_WORDS)
    )
    tail_events: int = field(default=20_000, validator=at_least(1))
    tail_bytes: int = field(default=16 * 1024 * 1024, validator=at_least(1))

    def contradictions(self) -> Iterator[str | NotAllowedError]:
        """Yield a line for options that contradict each other, or the error of a URL that the store does not take."""
        if self.retain_durables_s < self.retain_s:
            yield (
                "retain_durables_s is less than retain_s, but a position must be retained as long as the events after "
                "it"
            )
        store = BUILT_IN.get(self.store)
        scheme, separator, _ = self.url.partition("://")
        named = _STORE_OF.get(scheme)
        if store is None:
            if self.url and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^\x00-\x1f\x7f]*", self.url):
                allowed = 'SCHEME://ANYTHING without control characters, or ""'
                yield NotAllowedError("url", allowed, "a string that is not a URL")
        elif self.url and (fault := url_fault(self.url, _STORE_OF)):
            other = "; for another event store set log.store too" if separator and named is None else ""
            yield NotAllowedError("url", _URL_WORDS + other, fault)
        elif named == self.store:
            return
        elif store.place:
            yield f'store is "{self.store}", which needs url = "{store.url}"'
        elif self.url:
            yield f'url is for store = "{named}", but store is "{self.store}"'

    def location(self, database_url: str) -> str:
        """Return the URL of the ``sql`` store: ``url``, the application's Postgres, or a file next to its SQLite file.

        Other stores receive ``url`` unchanged, because its form is theirs to define.
        """
        if self.url or database_url.startswith(POSTGRES):
            return canonical_url(self.url) or database_url
        path = sqlite_path(database_url)
        return sqlite_url(path.with_name(f"{path.name}.airy-trio.db"))


def find_store(name: str) -> OpenEventStore:
    """Return the function that opens the store of this name. No package can replace one of ours.

    Raises ``SettingsError`` if there is no such store, or if a package that it needs is not installed.
    """
    ours = {name: EntryPoint(name, store.place, GROUP) for name, store in BUILT_IN.items() if store.place}
    found = {entry.name: entry for entry in entry_points(group=GROUP)} | ours
    if name not in found:
        known = ", ".join(sorted({*BUILT_IN, *found}))
        raise SettingsError([f'log.store: there is no event store "{name}"; available are {known}'])
    try:
        opened: OpenEventStore = found[name].load()
    except ImportError as error:
        extra = f"; pip install airy-trio[{BUILT_IN[name].extra}]" if name in ours else ""
        raise SettingsError([f'log.store: "{name}" needs a package that is not installed: {error}{extra}']) from None
    return opened
