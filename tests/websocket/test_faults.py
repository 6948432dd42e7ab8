"""Faults in the service of one client, at every step: they end that client's session, and nothing of it stays."""

from collections.abc import Callable

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.log.store import PositionExpired
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, Rejected, StompClient
from airy_trio.websocket import farewells
from airy_trio.websocket.farewells import Farewell
from airy_trio.websocket.faults import farewell_after
from airy_trio.websocket.outlet import StreamOutlet
from airy_trio.websocket.wire import StalledError
from tests.websocket.serving import serving


@pytest.mark.parametrize(
    "fault, farewell, logged",
    [
        (StalledError(), farewells.TOO_SLOW, False),
        (trio.BrokenResourceError(), farewells.GONE, False),
        (trio.ClosedResourceError(), farewells.GONE, False),
        (PositionExpired(), farewells.POSITION_EXPIRED, False),
        (KeyError("x"), farewells.INTERNAL, True),
    ],
)
def test_what_an_exception_means(fault: Exception, farewell: Farewell, *, logged: bool) -> None:
    with capture_logs() as logs:
        assert farewell_after(fault, "s") is farewell
    assert bool(logs) is logged


class FaultyOutlet(StreamOutlet):
    """Fails at its n-th use, counted over all that can fail."""

    def __init__(self, stream: trio.abc.Stream, use: int, fault: Callable[[], Exception]) -> None:
        super().__init__(stream)
        self.uses_left = use
        self.fault = fault

    def _use(self) -> None:
        self.uses_left -= 1
        if self.uses_left == 0:
            raise self.fault()

    def offer(self, data: bytes) -> bool:
        self._use()
        return super().offer(data)

    def push(self, data: bytes) -> None:
        self._use()
        super().push(data)

    async def drain(self) -> None:
        self._use()
        await super().drain()

    async def receive_some(self, bytes_max: int) -> bytes:
        self._use()
        return await super().receive_some(bytes_max)

    async def send_eof(self) -> None:
        self._use()
        await super().send_eof()


async def use(client: StompClient) -> None:
    """All that a client does in its life, as far as it gets."""
    async with client:
        try:
            await client.upgrade()
            await client.connect(headers=[("heart-beat", "1000,1000")])
            await client.subscribe(headers=[("replay", "all"), ("ack", "client")])
            await client.acknowledge(await client.receive())
            await client.ping()
            await trio.sleep(1.5)
            await client.send_text("\n")
            await client.send(Frame("UNSUBSCRIBE", (("id", "0"), ("receipt", "r"))))
            while (await client.receive()).get("receipt-id") != "r":
                pass
            await client.disconnect()
        except (Closed, Rejected, trio.BrokenResourceError):
            return


FAULTS = (
    lambda: RuntimeError("bug"),
    lambda: OSError(5, "Input/output error"),
    lambda: trio.BrokenResourceError("gone"),
    lambda: trio.ClosedResourceError("closed"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bug"),
    lambda: KeyError("bug"),
    lambda: StalledError("stalled"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault()).__name__)
@pytest.mark.parametrize("nth", range(1, 31))
async def test_an_outlet_that_fails_at_its_nth_use_ends_its_session_only(
    nth: int, fault: Callable[[], Exception], autojump_clock: MockClock
) -> None:
    async with serving(listen=False) as server:
        healthy = await server.plug_connected(headers=[("heart-beat", "0,1000")])
        await healthy.client.subscribe()
        await server.append(1, 1)
        ours, theirs = trio.testing.memory_stream_pair()
        with capture_logs(), trio.fail_after(60):
            ending = server.start(FaultyOutlet(ours, nth, fault))
            await use(StompClient(theirs))
            await ending.wait()
        await server.append(2, 2)
        assert [(await healthy.client.receive()).body[:7] for _ in range(2)] == [b'{"n": 1', b'{"n": 2']
        async with healthy.client:
            await healthy.client.disconnect()
        await server.ended()
