"""Checks that an event store keeps the promises of its port, ``airy_trio.stores.EventStore``. Needs no pytest.

For authors of a store. A *place* is where events are kept: a database, a file, a server. ``make_place`` gives, as an
async context manager, a new and empty place, in the form of a function that opens the store there; each call of
that function is one more process that uses the place. All of it runs in one Trio loop::

    @asynccontextmanager
    async def make_place():
        with tempfile.TemporaryDirectory() as folder:

            @asynccontextmanager
            async def open_store():
                store = await MyStore.open(folder)
                try:
                    yield store
                finally:
                    await store.aclose()

            yield open_store

    trio.run(check_event_store, make_place)

A failure in the middle of a call is here a call that is broken off at one of its checkpoints. What it cannot check is
what happens when the process or the place dies there: end yours, open the place again, and call
``check_whole_batches`` on what you find.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from airy_trio.testing.store_bytes import BYTES
from airy_trio.testing.store_changes import CHANGE_PROMISES
from airy_trio.testing.store_crashes import CRASH_PROMISES, check_whole_batches
from airy_trio.testing.store_durables import DURABLE_PROMISES
from airy_trio.testing.store_model import agrees_with_a_list_under_random_schedules
from airy_trio.testing.store_promises import PROMISES
from airy_trio.testing.store_words import BrokenStoreError, OpenStore

__all__ = ["BrokenStoreError", "MakePlace", "OpenStore", "broken_promises", "check_event_store", "check_whole_batches"]

MakePlace = Callable[[], AbstractAsyncContextManager[OpenStore]]
"""Makes a new, empty place, and takes it away at the end."""

CHECK_TIMEOUT_S: Final = 60.0
CHECKS: Final = (
    *PROMISES,
    *BYTES,
    *CHANGE_PROMISES,
    *DURABLE_PROMISES,
    *CRASH_PROMISES,
    agrees_with_a_list_under_random_schedules,
)


async def check_event_store(make_place: MakePlace) -> None:
    """Check every promise, each in a new place. Raises an ``ExceptionGroup`` with all that are broken."""
    broken = await broken_promises(make_place)
    if broken:
        message = f"the event store breaks its promises: {', '.join(broken)}"
        raise ExceptionGroup(message, list(broken.values()))


async def broken_promises(make_place: MakePlace) -> dict[str, Exception]:
    """Check every promise, each in a new place; give what went wrong with each that is broken."""
    broken: dict[str, Exception] = {}
    for check in CHECKS:
        try:
            with trio.fail_after(CHECK_TIMEOUT_S):
                async with make_place() as open_store:
                    await check(open_store)
        except Exception as error:  # noqa: BLE001 - what a store raises without having promised it is a finding too
            broken[check.__name__] = error
    return broken
