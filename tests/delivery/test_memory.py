"""The memory of a subscription without acknowledgements: no events, and one range of offsets in flight."""

import gc
import tracemalloc

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.log.options import LogOptions
from tests.delivery.rig import Rig, delivering
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import events, open_log

CONNECTIONS = 10
SUBSCRIPTIONS = 16
BYTES_MAX = 1024


async def subscribe(rig: Rig, prefetch: int) -> None:
    for number in range(SUBSCRIPTIONS):
        headers = (("id", str(number)), ("destination", "/events"), ("replay", "all"))
        await rig.request("SUBSCRIBE", *headers, ("ack", "client"), ("prefetch-count", str(prefetch)))
    for _ in range(2 * SUBSCRIPTIONS):
        await wait_all_tasks_blocked()
        rig.transport.take()


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [1, 256, 1000])
async def test_subscription_that_never_acknowledges_holds_no_events(prefetch: int, autojump_clock: MockClock) -> None:
    log = await open_log(options=LogOptions(store="memory", tail_events=100))
    await log.append(log.head, events(1, 2000, size=1000), "point")
    async with delivering(log) as delivery:
        first, *rigs = [await delivery.connect(MemoryTransport()) for _ in range(1 + CONNECTIONS)]
        await subscribe(first, prefetch)  # fill the caches, which all share
        gc.collect()
        tracemalloc.start()
        try:
            for rig in rigs:
                await subscribe(rig, prefetch)
            await trio.sleep(1)
            gc.collect()
            each = tracemalloc.get_traced_memory()[0] / (CONNECTIONS * SUBSCRIPTIONS)
        finally:
            tracemalloc.stop()
        sent = [one.position.offset for rig in rigs for one in rig.client.subscriptions.values()]
        assert sent == [prefetch] * (CONNECTIONS * SUBSCRIPTIONS)
        assert each <= BYTES_MAX
