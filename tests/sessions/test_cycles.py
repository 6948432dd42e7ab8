"""A closed session is freed without the cycle collector, whose pauses would delay events."""

import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
import trio.testing

from airy_trio.delivery.client import Client
from airy_trio.sessions.session import Session
from airy_trio.testing.client import Closed, StompClient
from airy_trio.websocket.stream import FramedStream
from tests.sessions.serving import Server, serving

EACH = 5


async def leave(client: StompClient) -> None:
    await client.stream.aclose()


async def close(client: StompClient) -> None:
    await client.close()
    await until_closed(client)


async def disconnect(client: StompClient) -> None:
    await client.subscribe()
    await client.disconnect()


async def break_the_protocol(client: StompClient) -> None:
    await client.send_text("NONSENSE\n\n\0")
    await until_closed(client)


async def break_the_framing(client: StompClient) -> None:
    await client.stream.send_all(b"\xff" * 8)
    await until_closed(client)


async def be_refused(client: StompClient) -> None:
    await client.subscribe("/events", headers=[("replay", "none")])
    with suppress(Closed):
        await client.subscribe("/nowhere", subscription="1")
    await until_closed(client)


async def reset(client: StompClient) -> None:
    await client.subscribe()
    await trio.aclose_forcefully(client.stream)


async def until_closed(client: StompClient) -> None:
    with suppress(Closed):
        while True:
            await client.receive()


async def all_ended(server: Server) -> None:
    await server.ended()
    await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize(
    "end",
    [leave, close, disconnect, break_the_protocol, break_the_framing, be_refused, reset],
    ids=lambda end: end.__name__,
)
async def test_closed_session_is_freed_without_the_collector(end: Callable[[StompClient], Awaitable[None]]) -> None:
    async with serving() as server:

        async def live() -> None:
            async with await server.dial() as client:
                await end(client)

        await live()
        await all_ended(server)
        gc.collect()
        gc.disable()
        try:
            for _ in range(EACH):
                await live()
            await all_ended(server)
            left = Counter(type(one) for one in gc.get_objects() if isinstance(one, Session | Client | FramedStream))
        finally:
            gc.enable()
    assert not left, left
