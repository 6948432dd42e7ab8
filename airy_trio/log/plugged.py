"""Finds the event store that the settings name: one of ours, or one that an installed package brings.

A package names its store in the entry-point group ``airy_trio.event_stores``: under the store's name, a function that
takes ``[log] url`` (which may be empty) and gives an async context manager, inside which there is the store. Its author
checks it with ``airy_trio.testing.event_store``. Knows no store; is told which are ours.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from airy_trio.errors import SettingsError
from airy_trio.log.store import EventStore

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
