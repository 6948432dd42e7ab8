"""The clients with a few canned frames, so that a fault of the server is not mistaken for a fault of a client."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest
import trio
import trio_websocket

from tests.clients.client_processes import Client, Received, stompjs, stompman

CLIENTS = pytest.mark.parametrize("client", [stompjs, stompman])
Start = Callable[..., AbstractAsyncContextManager[Client]]


def message(subscription: str, number: int) -> str:
    body = f'{{"number":{number},"name":"Åsa"}}'
    headers = f"destination:/events\nsubscription:{subscription}\nmessage-id:k7f3q9-{number}"
    length = len(body.encode())
    return f"MESSAGE\n{headers}\ncontent-type:application/json\ncontent-length:{length}\n\n{body}\0"


async def canned(frames: list[str], request: trio_websocket.WebSocketRequest) -> None:
    """Answer like a server with two events."""
    socket = await request.accept(
        subprotocol=request.proposed_subprotocols[0] if request.proposed_subprotocols else None
    )
    while True:
        try:
            frame = str(await socket.get_message())
        except trio_websocket.ConnectionClosed:
            return
        frames.append(frame)
        if frame.startswith(("CONNECT\n", "STOMP\n")):
            await socket.send_message("CONNECTED\nversion:1.2\nsession:s\nserver:canned/1\nheart-beat:0,0\n\n\0")
        if receipt := re.search(r"^receipt:(.*)$", frame, re.MULTILINE):
            await socket.send_message(f"RECEIPT\nreceipt-id:{receipt[1]}\n\n\0")
        if frame.startswith("SUBSCRIBE\n"):
            subscription = re.search(r"^id:(.*)$", frame, re.MULTILINE)
            assert subscription
            for number in (1, 2):
                await socket.send_message(message(subscription[1], number))


async def listen(frames: list[str], nursery: trio.Nursery) -> str:
    serve = partial(trio_websocket.serve_websocket, partial(canned, frames), "127.0.0.1", 0, ssl_context=None)
    server = await nursery.start(serve)
    return f"ws://127.0.0.1:{server.port}/ws.communication"


@CLIENTS
async def test_client_prints_messages_and_disconnects(client: Start, nursery: trio.Nursery) -> None:
    frames: list[str] = []
    with trio.fail_after(30):
        async with client(await listen(frames, nursery), count=2) as running:
            await running.record("connected")
            received = await running.messages(2)
            assert await running.wait() == 0
            assert len(running.out.all) == 2
    assert [one.body for one in received] == [f'{{"number":{n},"name":"Åsa"}}' for n in (1, 2)]
    assert [one.headers["message-id"] for one in received] == ["k7f3q9-1", "k7f3q9-2"]
    assert any(frame.startswith("DISCONNECT\n") for frame in frames)


@CLIENTS
async def test_client_resumes_after_the_given_position(client: Start, nursery: trio.Nursery) -> None:
    frames: list[str] = []
    with trio.fail_after(30):
        async with client(await listen(frames, nursery), last_event_id="k7f3q9-0") as running:
            second = await running.messages(1, after=1)
            assert second == [Received(body='{"number":2,"name":"Åsa"}', headers=second[0].headers)]
            await running.terminate()
    [subscribe] = [frame for frame in frames if frame.startswith("SUBSCRIBE\n")]
    assert "\nlast-event-id:k7f3q9-0\n" in subscribe


async def test_stock_client_sends_only_standard_headers(nursery: trio.Nursery) -> None:
    frames: list[str] = []
    with trio.fail_after(30):
        async with stompjs(await listen(frames, nursery), count=1) as running:
            await running.messages(1)
    [subscribe] = [frame for frame in frames if frame.startswith("SUBSCRIBE\n")]
    assert set(re.findall(r"^(.*?):", subscribe, re.MULTILINE)) == {"id", "destination"}


async def test_client_that_ends_too_early_is_quoted(nursery: trio.Nursery) -> None:
    with trio.fail_after(30):
        async with stompman(await listen([], nursery), count=1) as running:
            with pytest.raises(AssertionError, match=r"ended after 1 messages:\n.*connected"):
                await running.messages(2)
