"""The published client against a scripted server: what it checks, and how it ends."""

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from airy_trio.stomp.frames import Frame, Version
from airy_trio.testing.client import BrokenPromiseError, Closed, Rejected, StompClient, connect


class Scripted:
    """The server's end of the stream, scripted by a test."""

    def __init__(self) -> None:
        ours, self.stream = trio.testing.memory_stream_pair()
        self.client = StompClient(ours)
        self.websocket = WSConnection(ConnectionType.SERVER)

    async def send(self, *events: Event) -> None:
        for event in events:
            await self.stream.send_all(self.websocket.send(event))

    async def receive(self) -> list[Event]:
        self.websocket.receive_data(bytes(await self.stream.receive_some()))
        return list(self.websocket.events())

    async def accept(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.client.upgrade)
            (request,) = await self.receive()
            assert isinstance(request, Request)
            await self.send(AcceptConnection(subprotocol="v12.stomp"))


@pytest.fixture
async def scripted() -> Scripted:
    server = Scripted()
    await server.accept()
    return server


CONNECTED = "CONNECTED\nversion:1.2\nheart-beat:0,0\n\n\0"


async def test_connect_agrees_on_the_servers_version(scripted: Scripted) -> None:
    await scripted.send(TextMessage(data=CONNECTED))
    answer = await scripted.client.connect(headers=[("login", "grace")])
    (sent,) = await scripted.receive()
    assert isinstance(sent, TextMessage)
    assert sent.data == "CONNECT\naccept-version:1.0,1.1,1.2\nlogin:grace\n\n\0"
    assert answer.get("version") == "1.2"
    assert scripted.client.version is Version.V1_2
    assert scripted.client.subprotocol == "v12.stomp"


async def test_a_message_in_pieces_of_the_stream_is_one(scripted: Scripted) -> None:
    data = scripted.websocket.send(TextMessage(data="RECEIPT\nreceipt-id:1\n\n\0"))
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            for octet in data:
                await scripted.stream.send_all(bytes([octet]))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(drip)
        assert await scripted.client.receive() == Frame("RECEIPT", (("receipt-id", "1"),))


async def test_heart_beats_are_counted_and_pings_answered(scripted: Scripted) -> None:
    await scripted.send(TextMessage(data="\n"), Ping(payload=b"p"), TextMessage(data="\n"), TextMessage(data=CONNECTED))
    assert (await scripted.client.receive()).command == "CONNECTED"
    assert scripted.client.heart_beats == 2
    assert await scripted.receive() == [Pong(payload=b"p")]


@pytest.mark.parametrize(
    "event",
    [
        TextMessage(data=CONNECTED + CONNECTED),
        TextMessage(data=CONNECTED + "\n" + CONNECTED),
        TextMessage(data="MESSAGE\ndestin"),
        TextMessage(data="\n\n"),
        TextMessage(data=""),
        BytesMessage(data=CONNECTED.encode()),
    ],
)
async def test_promises_of_the_server_are_checked(scripted: Scripted, event: Event) -> None:
    await scripted.send(event)
    with pytest.raises(BrokenPromiseError):
        await scripted.client.receive()


async def test_end_is_reported_after_earlier_messages_and_again(scripted: Scripted) -> None:
    await scripted.send(TextMessage(data=CONNECTED), CloseConnection(code=4410, reason="410-position-expired"))
    assert (await scripted.client.receive()).command == "CONNECTED"
    client = scripted.client
    for method in (client.receive, client.receive, client.ping, client.close):
        with pytest.raises(Closed) as closed:
            await method()
        assert (closed.value.code, closed.value.reason) == (4410, "410-position-expired")
    assert await scripted.receive() == [CloseConnection(code=4410, reason="410-position-expired")]


async def test_a_stream_that_ends_without_a_close_has_no_code(scripted: Scripted) -> None:
    await scripted.stream.aclose()
    with pytest.raises(Closed) as closed:
        await scripted.client.receive()
    assert closed.value.code is None


async def test_acks_are_in_the_way_of_the_version(scripted: Scripted) -> None:
    message_1_2 = Frame("MESSAGE", (("subscription", "0"), ("message-id", "m"), ("ack", "1.m")))
    await scripted.client.acknowledge(message_1_2)
    await scripted.client.acknowledge(Frame("MESSAGE", message_1_2.headers[:2]), command="NACK")
    sent = [event.data for event in await scripted.receive() if isinstance(event, TextMessage)]
    assert sent == ["ACK\nid:1.m\n\n\0", "NACK\nmessage-id:m\nsubscription:0\n\n\0"]


async def test_a_rejection_has_its_status() -> None:
    server = Scripted()

    async def reject() -> None:
        await server.receive()
        await server.send(RejectConnection(status_code=404, has_body=True), RejectData(data=b"no"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reject)
        with pytest.raises(Rejected) as rejected:
            await server.client.upgrade()
    assert (rejected.value.status, rejected.value.body) == (404, b"no")


async def test_connecting_without_a_server_fails() -> None:
    with pytest.raises(OSError, match="connect"):
        await connect("127.0.0.1", 9)
