"""A fault at every step of serving one client ends the session of that client and leaves nothing behind."""

import itertools
from collections.abc import Callable, MutableMapping
from typing import Any, Final, ParamSpec, TypeVar

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.delivery import disconnects
from airy_trio.delivery.disconnects import DisconnectReason, reason_after
from airy_trio.events.destinations import parse
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.store import EventStore, PositionExpired
from airy_trio.testing.client import Closed, Rejected, StompClient
from airy_trio.websocket.stream import StalledError
from tests.memory_transport import StreamTransport
from tests.sessions.life import PLACE, live
from tests.sessions.serving import Server, event, serving

P = ParamSpec("P")
T = TypeVar("T")


@pytest.mark.parametrize(
    "fault, reason, logged",
    [
        (StalledError(), disconnects.TOO_SLOW, False),
        (trio.BrokenResourceError(), disconnects.GONE, False),
        (trio.ClosedResourceError(), disconnects.GONE, False),
        (PositionExpired(), disconnects.POSITION_EXPIRED, False),
        (KeyError("x"), disconnects.INTERNAL, True),
    ],
)
def test_exceptions_map_to_disconnect_reasons(fault: Exception, reason: DisconnectReason, *, logged: bool) -> None:
    with capture_logs() as logs:
        assert reason_after(fault, "s") is reason
    assert bool(logs) is logged


EXPECTED: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
"""A peer that breaks its connection is not an error: only the end of the session is logged."""


class Fuse:
    """Counts uses, and fails at one of them."""

    def __init__(self, use: int, fault: Callable[[], Exception]) -> None:
        self.left = use
        self._fault = fault

    def use(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self._fault()


class FaultyTransport(StreamTransport):
    """Fails at the n-th use by a session and its tasks together."""

    def __init__(self, stream: trio.abc.Stream, fuse: Fuse) -> None:
        super().__init__(stream)
        self.fuse = fuse

    def offer(self, data: bytes) -> bool:
        self.fuse.use()
        return super().offer(data)

    def push(self, data: bytes) -> None:
        self.fuse.use()
        super().push(data)

    async def handshake(self) -> None:
        self.fuse.use()
        await super().handshake()

    async def drain(self) -> None:
        self.fuse.use()
        await super().drain()

    async def receive_some(self, bytes_max: int) -> bytes:
        self.fuse.use()
        return await super().receive_some(bytes_max)

    async def send_eof(self) -> None:
        self.fuse.use()
        await super().send_eof()

    async def aclose(self) -> None:
        await super().aclose()
        self.fuse.use()

    async def abort(self) -> None:
        await super().abort()
        self.fuse.use()


class FaultyLog(EventLog):
    """Fails at the n-th use for a destination that only one client subscribes to."""

    fuse: Fuse | None = None

    def __init__(self, store: EventStore, options: LogOptions) -> None:
        super().__init__(store, options)
        self.tail.attach = self.failing(self.tail.attach)  # type: ignore[method-assign]
        self.tail.after = self.failing(self.tail.after)  # type: ignore[method-assign]

    def failing(self, use: Callable[P, T]) -> Callable[P, T]:
        def use_or_fail(*args: P.args, **kwargs: P.kwargs) -> T:
            if self.fuse is not None and parse(PLACE) in [getattr(one, "destination", one) for one in args]:
                self.fuse.use()
            return use(*args, **kwargs)

        return use_or_fail


async def use(client: StompClient) -> None:
    """Run the life of a client until its session ends."""
    async with client:
        try:
            await live(client)
        except (Closed, Rejected, trio.BrokenResourceError):
            return


FAULTS: Final = (
    lambda: RuntimeError("bug"),
    lambda: trio.BrokenResourceError("gone"),
    lambda: trio.ClosedResourceError("closed"),
    lambda: StalledError("stalled"),
)


async def assert_nothing_is_left(server: Server, client: StompClient, tasks: int) -> None:
    """Check that nothing of a session is left, and that its peer has read the end of the stream."""
    assert len(server.sessions.clients) == server.sessions.wheel.clients == 1
    with trio.fail_after(10):
        while len(server.connections.child_tasks) > tasks:  # noqa: ASYNC110 - a nursery has no event for this
            await trio.lowlevel.checkpoint()
    view = server.log.tail.attach(parse(PLACE), client)
    assert list(view.readers) == [client]
    server.log.tail.detach(view, client)
    with pytest.raises(trio.ClosedResourceError):
        await client.stream.receive_some()  # the client has read the end of the stream, and closed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault()).__name__)
@pytest.mark.parametrize("where", ["transport", "log"])
async def test_fault_at_any_await_ends_only_its_session(
    where: str, fault: Callable[[], Exception], autojump_clock: MockClock
) -> None:
    log = FaultyLog(MemoryStore(), LogOptions(store="memory", tail_events=4))
    await log.open()
    async with serving(log, listen=False) as server:
        reads = server.sessions.services.reads
        reads.page = log.failing(reads.page)  # type: ignore[method-assign]
        await log.append(log.head, [event(number, channel="ch9") for number in range(1, 21)], "point")
        bystander = (await server.plug_connected(headers=[("heart-beat", "0,1000")])).client
        await bystander.subscribe(headers=[("replay", "none")])
        tasks = len(server.connections.child_tasks)
        for use_number in itertools.count(1):
            ours, theirs = trio.testing.memory_stream_pair()
            fuse, spare = Fuse(use_number, fault), Fuse(0, fault)
            log.fuse = fuse if where == "log" else None
            with capture_logs() as logs, trio.fail_after(200):
                ending = server.start(FaultyTransport(ours, fuse if where == "transport" else spare))
                await use(client := StompClient(theirs))
                await ending.wait()
            log.fuse = None
            assert_logged(logs, fault(), blown=fuse.left <= 0)
            await server.append(use_number, use_number)
            assert (await bystander.receive()).body.startswith(b'{"n": %d,' % use_number)
            await assert_nothing_is_left(server, client, tasks)
            if fuse.left > 0:
                break
        assert use_number > {"transport": 40, "log": 6}[where]
        async with bystander:
            await bystander.disconnect()
        await server.ended()


class UnclosableTransport(StreamTransport):
    """Fails when it is aborted."""

    async def abort(self) -> None:
        await super().abort()
        raise RuntimeError("bug")


async def test_a_fault_while_aborting_affects_no_other_session(autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        bystander = (await server.plug_connected()).client
        await bystander.subscribe()
        ours, theirs = trio.testing.memory_stream_pair()
        with capture_logs() as logs:
            ending = server.start(UnclosableTransport(ours))
            assert await ending.wait() is disconnects.CONNECT_TIMEOUT
        assert [line["event"] for line in logs if line["log_level"] == "error"] == ["session failed"]
        await theirs.aclose()
        await server.append(1, 1)
        assert (await bystander.receive()).command == "MESSAGE"
        await bystander.disconnect()
        await server.ended()


def assert_logged(logs: list[MutableMapping[str, Any]], fault: Exception, *, blown: bool) -> None:
    """Check the lines: the end of the session, its begin if it connected, and an unexpected fault."""
    received = [line["event"] for line in logs if line["event"].startswith("connection ")]
    assert received in (["connection closed"], ["connection opened", "connection closed"])
    failures = [line["event"] for line in logs if line["log_level"] == "error"]
    assert len(failures) == (blown and not isinstance(fault, EXPECTED))
