"""Live updates from an existing Postgres or SQLite database to STOMP clients over WebSocket.

As a library: ``await nursery.start(airy_trio.serve, settings)`` in your own Trio program, with the settings that
``airy_trio.settings.load`` or ``parse`` returns. Both are imported on first use. ``airy_trio.stores`` is for the
authors of event stores.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airy_trio import settings
    from airy_trio.app import Address, serve

__version__ = "0.1.0"

__all__ = ["Address", "__version__", "serve", "settings"]


def __getattr__(name: str) -> object:
    if name in {"Address", "serve"}:
        return getattr(import_module("airy_trio.app"), name)
    if name == "settings":
        return import_module("airy_trio.settings")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
