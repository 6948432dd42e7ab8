"""At the start an unavailable database or store is retried for a while, then reported with its setting."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from airy_trio.admin.readiness import Starting
from airy_trio.app.build import wait_until_available
from airy_trio.database import DatabaseOptions, DatabaseUnavailable
from airy_trio.errors import StartError, Unavailable
from airy_trio.log.memory import MemoryStore
from airy_trio.log.store import StoreUnavailable
from tests.log.recording import node
from tests.memory_feed import MemoryChanges

OPTIONS = DatabaseOptions(url="sqlite:///a.db", connect_timeout_s=5)


@pytest.mark.parametrize(
    "error, waits, message",
    [
        (
            DatabaseUnavailable("gone"),
            "waiting for the database (database.url): gone",
            "database.url: the database cannot be used: gone",
        ),
        (
            StoreUnavailable("gone"),
            "waiting for the event store (log.url): gone",
            "log.url: the event store cannot be used: gone",
        ),
    ],
    ids=["database", "store"],
)
async def test_unavailable_system_is_reported_with_its_setting(
    error: Unavailable, waits: str, message: str, autojump_clock: MockClock
) -> None:
    starting = Starting()
    reasons = []

    async def away() -> None:
        await trio.lowlevel.checkpoint()
        reasons.append(starting.conditions()["start"].reason)
        raise error

    start = trio.current_time()
    with pytest.raises(StartError) as caught:
        await wait_until_available(away, OPTIONS, "database.url", starting)
    assert caught.value.faults == (message,)
    assert reasons[-1] == waits
    assert trio.current_time() - start == pytest.approx(5, abs=0.3)


async def test_recorder_start_is_retried(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    changes = MemoryChanges(away=True)
    one = node(changes, MemoryStore())
    await one.log.open()

    async def come_back() -> None:
        await trio.sleep(3)
        changes.away = False

    nursery.start_soon(come_back)
    await wait_until_available(partial(nursery.start, one.recorder.run), OPTIONS, "database.url")
    assert one.recorder.recording
    nursery.cancel_scope.cancel()
