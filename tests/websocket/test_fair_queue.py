"""The fair queue: a bounded number of tasks in each pass of the event loop, in order, fairly by address."""

from collections import Counter

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from airy_trio.sessions.conversation import PIECE_BYTES
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.sessions.session import CLOSE_TIMEOUT_S, read_to_end
from airy_trio.testing.client import StompClient
from airy_trio.websocket.fair_queue import ENTRIES_PER_PASS, FairQueue
from tests.delivery.rig import rigged
from tests.event_stream import EventStream
from tests.memory_transport import MemoryTransport, StreamTransport
from tests.sessions.serving import open_log, serving


class Turns(trio.abc.Instrument):
    """Counts the passes of the event loop, and the ``answers`` in each."""

    def __init__(self) -> None:
        self.count = 0
        self.answers: Counter[int] = Counter()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio's
        self.count += 1


async def test_bounded_number_enters_in_each_pass() -> None:
    fair_queue, turns = FairQueue(), Turns()
    entered: list[tuple[int, int]] = []

    async def enter(number: int) -> None:
        await fair_queue.enter()
        entered.append((turns.count, number))

    count = 10 * ENTRIES_PER_PASS + 3
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fair_queue.run)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(turns)
        for number in range(count):
            nursery.start_soon(enter, number)
        with trio.fail_after(5):
            while len(entered) < count:  # noqa: ASYNC110 - turn by turn
                await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(turns)
        assert (fair_queue.waiting, fair_queue.waited) == (0, count - 2 * ENTRIES_PER_PASS)
        nursery.cancel_scope.cancel()
    by_turn = [sum(at == turn for at, _ in entered) for turn in sorted({at for at, _ in entered})]
    assert max(by_turn) == ENTRIES_PER_PASS
    assert len(by_turn) == 11
    assert sorted(number for _, number in entered) == list(range(count))


async def test_tasks_of_an_address_are_admitted_in_order() -> None:
    fair_queue = FairQueue()
    entered: list[int] = []

    async def enter(number: int) -> None:
        await fair_queue.enter()
        entered.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3 * ENTRIES_PER_PASS):
            nursery.start_soon(enter, number)
            await trio.testing.wait_all_tasks_blocked()
        assert entered == list(range(ENTRIES_PER_PASS))
        assert (fair_queue.waiting, fair_queue.waited) == (2 * ENTRIES_PER_PASS, ENTRIES_PER_PASS)
        nursery.start_soon(fair_queue.run)
        await trio.testing.wait_all_tasks_blocked()
        assert set(entered[: 2 * ENTRIES_PER_PASS]) == set(range(2 * ENTRIES_PER_PASS))
        assert len(entered) == 3 * ENTRIES_PER_PASS
        nursery.cancel_scope.cancel()


async def test_without_a_crowd_no_task_waits() -> None:
    fair_queue = FairQueue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fair_queue.run)
        for _ in range(10 * ENTRIES_PER_PASS):
            await fair_queue.enter()
            await trio.lowlevel.checkpoint()
        assert (fair_queue.waiting, fair_queue.waited) == (0, 0)
        nursery.cancel_scope.cancel()


async def test_cancelled_task_takes_no_place() -> None:
    fair_queue = FairQueue()
    for _ in range(ENTRIES_PER_PASS):
        await fair_queue.enter()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0):
            await fair_queue.enter()
            pytest.fail("there was no room")
        nursery.start_soon(fair_queue.run)
        for _ in range(2 * ENTRIES_PER_PASS):
            with trio.fail_after(5):
                await fair_queue.enter()
        nursery.cancel_scope.cancel()


async def test_addresses_are_served_round_robin() -> None:
    fair_queue = FairQueue()
    crowds, each = 2 * ENTRIES_PER_PASS, 100
    entered: list[str] = []

    async def enter(address: str) -> None:
        await fair_queue.enter(address)
        entered.append(address)

    async with trio.open_nursery() as nursery:
        for number in range(crowds * each):
            nursery.start_soon(enter, f"crowd {number % crowds}")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(enter, "newcomer")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(fair_queue.run)
        await trio.testing.wait_all_tasks_blocked()
        assert entered.index("newcomer") <= crowds + 2 * ENTRIES_PER_PASS  # of 3200
        assert Counter(entered) == {f"crowd {number}": each for number in range(crowds)} | {"newcomer": 1}
        assert fair_queue.waiting == 0
        nursery.cancel_scope.cancel()


async def test_address_without_tasks_takes_no_place() -> None:
    fair_queue = FairQueue()
    for _ in range(ENTRIES_PER_PASS):
        await fair_queue.enter()
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as impatient:
            for number in range(10 * ENTRIES_PER_PASS):
                impatient.start_soon(fair_queue.enter, f"gone {number}")
            await trio.testing.wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
        assert fair_queue.waiting == 0
        nursery.start_soon(fair_queue.run)
        with trio.fail_after(5):
            for _ in range(2 * ENTRIES_PER_PASS):
                await fair_queue.enter("patient")
        await trio.testing.wait_all_tasks_blocked()
        assert fair_queue.waiting == 0
        nursery.cancel_scope.cancel()


async def test_queue_admits_all_after_run_ended() -> None:
    fair_queue = FairQueue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fair_queue.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        for _ in range(5 * ENTRIES_PER_PASS):
            await fair_queue.enter()


class Answering(StreamTransport):
    """Counts writes by pass of the event loop."""

    def __init__(self, stream: trio.abc.Stream, turns: Turns) -> None:
        super().__init__(stream)
        self._turns = turns

    def push(self, data: bytes) -> None:
        self._turns.answers[self._turns.count] += 1
        super().push(data)


async def test_crowd_is_answered_over_many_passes_without_delaying_events(autojump_clock: MockClock) -> None:
    crowd, requests = 50, 20
    turns = Turns()
    async with serving(listen=False) as server:
        listener = (await server.plug_connected()).client
        await listener.subscribe()
        clients = []
        for _ in range(crowd):
            ours, theirs = trio.testing.memory_stream_pair()
            server.start(Answering(ours, turns))
            clients.append(StompClient(theirs))
            await clients[-1].upgrade()
            await clients[-1].connect()
        turns.answers.clear()
        trio.lowlevel.add_instrument(turns)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.send_text, "UNSUBSCRIBE\nid:9\nreceipt:r\n\n\x00" * requests)
            await server.append(1, 1)
            assert (await listener.receive()).command == "MESSAGE"
            answered = sum(turns.answers.values())
        for client in clients:
            for _ in range(requests):
                assert (await client.receive()).command == "RECEIPT"
        trio.lowlevel.remove_instrument(turns)
        assert server.sessions.admission.fair_queue.waited > crowd * requests / 2
    assert sum(turns.answers.values()) == crowd * requests
    assert answered < crowd * requests / 4
    assert max(turns.answers.values()) <= 2 * ENTRIES_PER_PASS


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The address of each entry into a fair queue, in order."""
    found: list[str] = []
    enter = FairQueue.enter

    async def recorded(fair_queue: FairQueue, address: str = "") -> None:
        found.append(address)
        await enter(fair_queue, address)

    monkeypatch.setattr(FairQueue, "enter", recorded)
    return found


async def test_turns_are_by_forwarded_address_once_known(addresses: list[str]) -> None:
    async with serving(options=ListenerOptions(port=0, trusted_proxies=["127.0.0.1"])) as server:
        client = await server.dial_raw()
        await client.upgrade(headers=(("X-Forwarded-For", "192.0.2.7"),))
        await client.connect()
        await client.subscribe()
        before, after = addresses.index("192.0.2.7"), addresses[addresses.index("192.0.2.7") :]
        assert set(addresses[:before]) == {"127.0.0.1"}
        assert set(after) == {"192.0.2.7"}
        assert len(after) == 2  # the read with CONNECT, and the read with SUBSCRIBE
        await client.stream.aclose()


def text(message: str) -> bytes:
    """Return a text message, as a client writes it."""
    return Connection(ConnectionType.CLIENT).send(TextMessage(data=message))


@pytest.mark.parametrize("together", [1, 2, 5])
async def test_each_message_takes_a_turn(together: int, addresses: list[str]) -> None:
    async with serving(listen=False) as server:
        client = (await server.plug_connected()).client
        addresses.clear()
        await client.stream.send_all(together * text("UNSUBSCRIBE\nid:9\nreceipt:r\n\n\x00"))
        for _ in range(together):
            assert (await client.receive()).command == "RECEIPT"
        assert len(addresses) == together


async def test_request_for_events_takes_two_turns(addresses: list[str]) -> None:
    async with serving(listen=False) as server:
        await (await EventStream(server.plug().client.stream).request()).subscribed()
        assert len(addresses) == 2  # one entry to read the frame, one to start the subscription


async def test_large_message_is_handled_in_pieces() -> None:
    async with rigged(await open_log(), MemoryTransport()) as rig:
        before = rig.queue.turns
        message = b"ACK\nid:1.k7f3q9-1\n\n\x00" * 3000
        assert await rig.conversation.handle(message) is None
        assert rig.queue.turns - before == (len(message) - 1) // PIECE_BYTES
        assert rig.conversation._services.acks_ignored == 3000  # noqa: SLF001 - a copy of the delivery's services
        receipt = "\u20ac" * PIECE_BYTES
        await rig.request("UNSUBSCRIBE", ("id", "9"), ("receipt", receipt))
        assert rig.read()[-1].get("receipt-id") == receipt


async def test_subscribe_without_a_receipt_takes_a_turn() -> None:
    async with rigged(await open_log(), MemoryTransport()) as rig:
        before = rig.queue.turns
        await rig.conversation.handle(b"SUBSCRIBE\nid:1\ndestination:/events\n\n\x00UNSUBSCRIBE\nid:1\n\n\x00" * 5)
        assert rig.queue.turns - before == 5  # after each SUBSCRIBE


async def test_message_that_waits_for_its_turn_is_not_silence(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays_s: list[float] = []

    async def enter(_fair_queue: FairQueue, _address: str = "") -> None:
        await trio.sleep(delays_s.pop(0) if delays_s else 0)

    monkeypatch.setattr(FairQueue, "enter", enter)
    async with serving(options=ListenerOptions(heartbeat_ms=500), listen=False) as server:
        client = (await server.plug_connected(headers=(("heart-beat", "500,0"),))).client
        delays_s += [0, 5]  # the octets with the first message, then the second one
        await client.stream.send_all(2 * text("UNSUBSCRIBE\nid:9\nreceipt:r\n\n\x00"))
        assert (await client.receive()).command == "RECEIPT"
        assert (await client.receive()).command == "RECEIPT"


async def test_input_of_a_disconnected_crowd_is_read_over_many_passes() -> None:
    crowd, pieces = 100, 10
    fair_queue, turns = FairQueue(), Turns()
    transports = [MemoryTransport() for _ in range(crowd)]
    for transport in transports:
        for _ in range(pieces):
            transport.feed(b"x")
        transport.feed_eof()
    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fair_queue.run)
        async with trio.open_nursery() as reading:
            for transport in transports:
                reading.start_soon(read_to_end, transport, fair_queue.enter)
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(turns)
    assert turns.count >= crowd * pieces / ENTRIES_PER_PASS


async def test_messages_after_a_fault_are_dropped_without_being_parsed(autojump_clock: MockClock) -> None:
    more, turns = 20_000, Turns()
    async with serving(listen=False) as server:
        plugged = await server.plug_connected()
        trio.lowlevel.add_instrument(turns)
        await send_many(plugged.client, ["NONSENSE\n\n\0", *["\n"] * more])
        await plugged.client.stream.send_all(Connection(ConnectionType.CLIENT).send(CloseConnection(code=1002)))
        while await plugged.client.stream.receive_some():
            pass
        trio.lowlevel.remove_instrument(turns)
        assert trio.current_time() < CLOSE_TIMEOUT_S
        await plugged.client.stream.aclose()
    assert turns.count < more / 100


async def send_many(client: StompClient, messages: list[str]) -> None:
    websocket = Connection(ConnectionType.CLIENT)
    await client.stream.send_all(b"".join(websocket.send(TextMessage(data=message)) for message in messages))
