"""Complete sessions: Close frames, PINGs and shutdown while a session waits, and how a session is freed at its end."""

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from attrs import evolve
from trio.testing import MockClock

from airy_trio.delivery import disconnects
from airy_trio.delivery.client import Client
from airy_trio.log.memory import MemoryStore
from airy_trio.log.store import Bounds
from airy_trio.sessions.conversation import Inbox
from airy_trio.sessions.listener import ListenerOptions, accept, open_listening_socket
from airy_trio.sessions.session import Session
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient
from airy_trio.websocket import tls
from airy_trio.websocket.frames import CLOSE, PING, TEXT, FrameReader, close_answer
from airy_trio.websocket.stream import FramedStream, InputEnded
from airy_trio.websocket.tls import Encryption
from tests.certificates import issue
from tests.living import freed_without_the_collector
from tests.memory_transport import MemoryTransport
from tests.sessions.serving import HOST, Server, open_log, serving
from tests.websocket.test_battery import CONNECT, frame
from tests.websocket.test_request import head


class GatedStore(MemoryStore):
    """Does not answer while ``gate`` is an event that is not set."""

    gate: trio.Event | None = None

    async def bounds(self) -> Bounds:
        if self.gate is not None:
            await self.gate.wait()
        return await super().bounds()


async def taken(transport: MemoryTransport) -> bytes:
    await trio.testing.wait_all_tasks_blocked(0.01)
    return transport.take()


def subscribe(number: int, replay: str) -> bytes:
    text = f"SUBSCRIBE\nid:{number}\ndestination:/events\nreplay:{replay}\nreceipt:s{number}\n\n\0"
    return frame(TEXT, text.encode())


@asynccontextmanager
async def close_in_a_waiting_subscribe() -> AsyncGenerator[tuple[Server, MemoryTransport, Client]]:
    """Send SUBSCRIBE and Close from a client that is behind. The store answers while the answer to Close waits."""
    store = GatedStore()
    async with serving(await open_log(store), listen=False) as server:
        transport = MemoryTransport()
        server.start(transport)
        transport.feed(head())
        assert b" 101 " in await taken(transport)
        transport.feed(frame(TEXT, CONNECT))
        assert b"CONNECTED" in await taken(transport)
        transport.feed(subscribe(0, "none"))
        assert b"RECEIPT" in await taken(transport)
        (client,) = server.clients
        transport.capacity_bytes = 100
        await server.append(1, 1, size=2000)  # one event that the client takes slowly
        await trio.testing.wait_all_tasks_blocked(0.01)
        store.gate = trio.Event()
        transport.feed(subscribe(1, "all"))
        transport.feed(frame(CLOSE, b"\x03\xe8"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        store.gate.set()  # the store answers
        await trio.testing.wait_all_tasks_blocked(0.01)
        transport.capacity_bytes = None
        transport.take()
        yield server, transport, client


async def test_close_during_a_waiting_subscribe_is_answered(autojump_clock: MockClock) -> None:
    with trio.fail_after(10_000):
        async with close_in_a_waiting_subscribe() as (server, transport, _):
            await trio.sleep(300)
            got = transport.take()
            assert got.endswith(close_answer(b"\x03\xe8")), f"{got[-40:]!r} after 300 s"
            assert server.endings[0].reason is not None, "the session has not ended after 300 s"


async def test_close_during_a_waiting_subscribe_bounds_later_input(autojump_clock: MockClock) -> None:
    with trio.fail_after(10_000):
        async with close_in_a_waiting_subscribe() as (_, transport, client):
            with suppress(trio.BrokenResourceError):
                for _ in range(1000):
                    transport.feed(b"x" * 4096)
                    await trio.testing.wait_all_tasks_blocked()
            assert len(client.stream.unread) < 10_000


async def test_slow_client_with_heart_beats_and_ping_stays_connected(autojump_clock: MockClock) -> None:
    """It takes 1 KiB a second, and sends a heart-beat each second; one PING waits for the batch of 64 KiB."""
    options = ListenerOptions(port=0, heartbeat_ms=5000)
    async with serving(options=options, listen=False) as server:
        transport = MemoryTransport()
        ending = server.start(transport)
        transport.feed(head())
        await taken(transport)
        transport.feed(frame(TEXT, b"CONNECT\naccept-version:1.2\nheart-beat:1000,0\n\n\0"))
        assert b"CONNECTED" in await taken(transport)
        transport.feed(subscribe(0, "none"))
        await taken(transport)
        transport.capacity_bytes = 1024
        await server.append(1, 60, size=1000)
        transport.feed(frame(PING))
        for _ in range(60):
            transport.feed(frame(TEXT, b"\n"))
            await trio.sleep(1)
            transport.take()
            assert ending.reason is None, ending.reason


async def test_known_fault_ends_a_second_wait(autojump_clock: MockClock) -> None:
    """SUBSCRIBE waits up to three times; the client closes at the end of the first wait and then awaits our FIN."""
    transport = MemoryTransport()
    stream = FramedStream(transport, send_timeout_s=10)
    await stream.upgrade(b"", 65_536)
    inbox = Inbox(stream.receive, trio.lowlevel.checkpoint, bytes_max=10_000)

    async def finish_as_the_client_leaves() -> str:
        with trio.CancelScope(shield=True):  # or: the event is set in the same pass
            await trio.sleep(1)
            transport.feed(frame(CLOSE, b"\x03\xe8"))
            await trio.sleep(1)
        return "answer"

    assert await inbox.unless_gone(finish_as_the_client_leaves()) == "answer"
    with pytest.raises(InputEnded):
        await inbox.unless_gone(trio.sleep(1000))  # noqa: ASYNC105 - awaited there
    assert trio.current_time() < 10


async def test_unraised_fault_leaves_no_cycle(autojump_clock: MockClock) -> None:
    async def live() -> None:
        transport = MemoryTransport()
        stream = FramedStream(transport, send_timeout_s=10)
        await stream.upgrade(b"", 65_536)
        inbox = Inbox(stream.receive, trio.lowlevel.checkpoint, bytes_max=10_000)

        async def finish_as_the_client_leaves() -> str:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                transport.feed_eof()
                await trio.sleep(1)
            return "answer"

        await inbox.unless_gone(finish_as_the_client_leaves())
        inbox.clear()

    with freed_without_the_collector(Inbox, FramedStream) as left:
        await live()
        await trio.testing.wait_all_tasks_blocked()
    assert not left


Dial = Callable[[], Awaitable[trio.abc.Stream]]
OPTIONS = ListenerOptions(port=0, heartbeat_ms=500, connect_timeout_s=0.3, send_timeout_s=0.5)


async def until_closed(client: StompClient) -> None:
    with suppress(Closed, trio.BrokenResourceError):
        while True:
            await client.receive()


async def bad_request(server: Server, dial: Dial) -> None:
    stream = await dial()
    await stream.send_all(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass
    await stream.aclose()


async def no_upgrade(server: Server, dial: Dial) -> None:
    stream = await dial()
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass
    await trio.aclose_forcefully(stream)


async def no_connect(server: Server, dial: Dial) -> None:
    client = StompClient(await dial())
    await client.upgrade(HOST)
    await until_closed(client)
    await trio.aclose_forcefully(client.stream)


async def connected(dial: Dial, *headers: tuple[str, str]) -> StompClient:
    client = StompClient(await dial())
    await client.upgrade(HOST)
    await client.connect(headers=headers)
    return client


async def plain_leave(server: Server, dial: Dial) -> None:
    client = await connected(dial)
    await trio.aclose_forcefully(client.stream)


async def plain_close(server: Server, dial: Dial) -> None:
    client = await connected(dial)
    await client.close()
    await until_closed(client)
    await trio.aclose_forcefully(client.stream)


async def silent(server: Server, dial: Dial) -> None:
    client = await connected(dial, ("heart-beat", "500,0"))
    await until_closed(client)
    await trio.aclose_forcefully(client.stream)


async def shut_down(server: Server, dial: Dial) -> None:
    client = await connected(dial)
    await client.subscribe()
    disconnect_all(server)
    await until_closed(client)
    await trio.aclose_forcefully(client.stream)


def disconnect_all(server: Server) -> None:
    """Disconnect all clients. This is not a coroutine, because a traceback may keep the frame of a coroutine alive."""
    for one in server.clients:
        one.disconnect(disconnects.SHUTTING_DOWN)


async def too_slow(server: Server, dial: Dial) -> None:
    client = await connected(dial)
    await client.subscribe("/events", headers=[("replay", "none")])
    for _ in range(40):
        await server.append(1, 20, size=50_000)
    await trio.sleep(1.5)
    await trio.aclose_forcefully(client.stream)


async def reset_while_behind(server: Server, dial: Dial) -> None:
    client = await connected(dial)
    await client.subscribe("/events", headers=[("replay", "none")])
    for _ in range(40):
        await server.append(1, 20, size=50_000)
    await trio.aclose_forcefully(client.stream)


@asynccontextmanager
async def waiting_subscribe(server: Server, dial: Dial) -> AsyncGenerator[StompClient]:
    """Yield a client with a SUBSCRIBE that waits for the store during the block. Then its socket is closed."""
    store = server.log.store
    assert isinstance(store, GatedStore)
    client = await connected(dial)
    gate = store.gate = trio.Event()
    await client.send(Frame("SUBSCRIBE", (("id", "0"), ("destination", "/events"), ("replay", "all"))))
    while not gate.statistics().tasks_waiting:  # noqa: ASYNC110 - an event has no event for this
        await trio.sleep(0.001)
    yield client
    await trio.aclose_forcefully(client.stream)
    await trio.testing.wait_all_tasks_blocked(0.01)
    gate.set()
    store.gate = None


async def leave_in_a_wait(server: Server, dial: Dial) -> None:
    async with waiting_subscribe(server, dial):
        pass


async def break_framing_in_a_wait(server: Server, dial: Dial) -> None:
    async with waiting_subscribe(server, dial) as client:
        await client.stream.send_all(b"\xff" * 8)
        await until_closed(client)


async def shut_down_in_a_wait(server: Server, dial: Dial) -> None:
    async with waiting_subscribe(server, dial) as client:
        disconnect_all(server)
        await until_closed(client)


async def invalid_text(server: Server, dial: Dial) -> None:
    client = await connected(dial)
    await client.stream.send_all(frame(TEXT, b"a\xff"))
    await until_closed(client)
    await trio.aclose_forcefully(client.stream)


async def too_large(server: Server, dial: Dial) -> None:
    client = await connected(dial)
    await client.stream.send_all(frame(TEXT, b"a" * 70_000)[:100])
    await until_closed(client)
    await trio.aclose_forcefully(client.stream)


WAYS = [
    bad_request, no_upgrade, no_connect, plain_leave, plain_close, shut_down, reset_while_behind,
    leave_in_a_wait, break_framing_in_a_wait, shut_down_in_a_wait, invalid_text, too_large,
    pytest.param(silent, marks=pytest.mark.slow), pytest.param(too_slow, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.fixture(scope="module")
def encryption(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encryption, ssl.SSLContext]:
    files = issue(tmp_path_factory.mktemp("tls"))
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return Encryption(tls.load(str(files.certificate), str(files.key)).context), client


@pytest.mark.parametrize("over_tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_session_is_freed_however_it_ends(
    way: Callable[[Server, Dial], Awaitable[None]], over_tls: bool, encryption: tuple[Encryption, ssl.SSLContext]
) -> None:
    options = evolve(OPTIONS, connect_timeout_s=0.05) if way is no_upgrade else OPTIONS
    with trio.fail_after(30):
        log = await open_log(GatedStore())
        async with serving(log, options) as server, trio.open_nursery() as intake:
            listening = await open_listening_socket(options)
            port = listening.getsockname()[1]
            intake.start_soon(accept, listening, server.sessions, server.connections, encryption[0])

            async def dial() -> trio.abc.Stream:
                if not over_tls:
                    return await trio.open_tcp_stream(HOST, server.port)
                return await trio.open_ssl_over_tcp_stream(HOST, port, ssl_context=encryption[1])

            async def all_ended() -> None:
                while server.connections.child_tasks:  # noqa: ASYNC110 - a nursery has no event for this
                    await trio.sleep(0.001)
                await trio.testing.wait_all_tasks_blocked(0.01)

            await way(server, dial)
            await all_ended()
            with freed_without_the_collector(Session, Client, FramedStream, FrameReader) as left:
                await way(server, dial)
                await all_ended()
            listening.close()
            intake.cancel_scope.cancel()
        assert not left


async def begin(server: Server, *inputs: bytes, capacity_bytes: int | None = None) -> tuple[MemoryTransport, bytes]:
    transport = MemoryTransport()
    server.start(transport)
    output = b""
    for data in inputs:
        transport.feed(data)
        output += await taken(transport)
    transport.capacity_bytes = capacity_bytes
    return transport, output


CLOSE_FRAME = frame(CLOSE, b"\x03\xe8")
HALVES = [1, 2, 5, 6, 7]
STATES = {
    "upgraded": [],
    "connected": [frame(TEXT, CONNECT)],
    "half a header": [frame(TEXT, CONNECT), CLOSE_FRAME[:1]],
    "half a message": [frame(TEXT, CONNECT), frame(TEXT, b"\n" * 60_000)[:4000]],
    "paced": [frame(TEXT, CONNECT), frame(PING) * 300],
    "waiting": [frame(TEXT, CONNECT), subscribe(0, "all")],
    "waiting and paced": [frame(TEXT, CONNECT), subscribe(0, "all") + frame(PING) * 300],
    "waiting and full": [frame(TEXT, CONNECT), subscribe(0, "all"), *[frame(TEXT, b"\n" * 4000)] * 20],
}


@pytest.mark.parametrize("answers", [True, False], ids=["answers", "silent"])
@pytest.mark.parametrize("state", STATES)
async def test_shutdown_in_every_state(state: str, answers: bool, autojump_clock: MockClock) -> None:
    store = GatedStore()
    async with serving(await open_log(store), listen=False) as server:
        store.gate = trio.Event()
        transport, _ = await begin(server, head(), *STATES[state])
        begun_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.sessions.disconnect_all, 1)
            await trio.sleep(0.2)
            output = transport.take()
            if answers:
                transport.feed(frame(CLOSE, b"\x03\xf4"))
                await trio.sleep(0.1)
                transport.feed_eof()
        assert b"503-shutting-down" in output
        assert b"\x03\xf4" in output
        assert await server.endings[0].wait() is disconnects.SHUTTING_DOWN
        assert trio.current_time() - begun_at <= 2.1
        assert transport.aborted is not answers


@pytest.mark.parametrize("at", HALVES)
async def test_close_frame_that_was_read_by_half_is_recognised(at: int, autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        transport, _ = await begin(server, head(), frame(TEXT, CONNECT), CLOSE_FRAME[:at])
        (client,) = server.clients
        client.disconnect(disconnects.SHUTTING_DOWN)
        await trio.testing.wait_all_tasks_blocked(0.01)
        transport.feed(CLOSE_FRAME[at:])
        await trio.sleep(0.1)
        assert transport.ended, "a client awaits our FIN after both Close frames"


@asynccontextmanager
async def beating_while_the_store_waits() -> AsyncGenerator[tuple[Server, MemoryTransport, GatedStore]]:
    """Connect a client that has promised a heart-beat each second to a server whose store does not answer."""
    store = GatedStore()
    options = ListenerOptions(port=0, heartbeat_ms=1000)
    async with serving(await open_log(store), options, listen=False) as server:
        connect = frame(TEXT, b"CONNECT\naccept-version:1.2\nheart-beat:1000,0\n\n\0")
        transport, _ = await begin(server, head(), connect)
        store.gate = trio.Event()
        yield server, transport, store


async def test_silence_counts_while_a_request_waits_for_the_store(autojump_clock: MockClock) -> None:
    async with beating_while_the_store_waits() as (server, transport, _):
        transport.feed(subscribe(0, "all"))
        for _ in range(20):
            await trio.sleep(1)
            transport.feed(frame(TEXT, b"\n"))
        found = [server.endings[0].reason]
        await trio.sleep(10)
        assert [*found, server.endings[0].reason] == [None, disconnects.SILENT]


async def test_client_that_hangs_is_cut_although_a_turn_was_cancelled(autojump_clock: MockClock) -> None:
    async with beating_while_the_store_waits() as (server, transport, store):
        beat = frame(TEXT, b"\n")
        transport.feed(subscribe(0, "all") + beat[:3])  # the beat is cut between two reads
        await trio.testing.wait_all_tasks_blocked(0.01)

        async def crowd() -> None:  # others keep the fair queue full for a moment
            while True:
                await server.sessions.admission.fair_queue.enter(HOST)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(crowd)
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            transport.feed(beat[3:])
            (client,) = server.clients
            while client.stream.reading:  # noqa: ASYNC110 - a stream has no event for this
                await trio.lowlevel.checkpoint()
            assert store.gate is not None
            store.gate.set()  # the store answers while the beat waits for its turn
            store.gate = None
            for _ in range(4):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await trio.sleep(60)  # the client hangs: its kernel works, and it sends nothing any more
        assert server.endings[0].reason is not None, f"reading={client.stream.reading}"


@pytest.mark.parametrize(
    "content", [b"\x03\xe8", b"\x03", b"\x03\xf6", b"\x03\xe8\xff"], ids=["control", "one octet", "1014", "not UTF-8"]
)
async def test_client_with_an_invalid_close_frame_is_not_awaited(content: bytes, autojump_clock: MockClock) -> None:
    """It has sent its Close frame, so it sends no other and awaits our FIN."""
    async with serving(listen=False) as server:
        transport, _ = await begin(server, head(), frame(TEXT, CONNECT))
        begun_at = trio.current_time()
        transport.feed(frame(CLOSE, content))
        while not (transport.ended or transport.aborted):  # noqa: ASYNC110 - a transport has no event for this
            await trio.sleep(0.05)
        waited_s = trio.current_time() - begun_at
        transport.feed_eof()
        await server.endings[0].wait()
        assert (transport.aborted, waited_s < 0.2) == (False, True)
