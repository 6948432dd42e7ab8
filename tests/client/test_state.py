"""The Python client that begins with the current state: at first, after a reset, and across a lost connection."""

from random import Random

import pytest
import trio
from trio.testing import MockClock
from trio_websocket import WebSocketConnection

from airy_trio import client
from airy_trio.client import Event, Events, State
from airy_trio.log.current import Marks
from airy_trio.log.reads import STATE_AGE_S
from airy_trio.log.store import StateChange
from tests.client.rig import CONNECTED, append, cutting, number_of, scripted, tag, take, url_of
from tests.log.places import fold
from tests.sessions.serving import HOST, Server, serving

TAGS = frozenset({"tag.updated"})
WHOLE = str(Marks(kept=TAGS, types=TAGS, whole={"tag.updated": 0}))
SEED = 11


async def keep(server: Server, *numbers: int, marks: str = WHOLE) -> None:
    """Append the events of some tags in one append, and add them to the current state."""
    head = server.log.head
    change = StateChange(generation="state0", marks=marks)
    await server.log.append(head, [tag(number) for number in numbers], f"point {head.offset}", state=change)
    await fold(server.log.store, "state0")


async def state_of(events: Events, count: int) -> tuple[State, list[tuple[int, bool]]]:
    """Return the item that begins a state, and the numbers of the next events with whether they complete it."""
    begun = await anext(events)
    assert isinstance(begun, State), begun
    return begun, await completions(events, count)


async def completions(events: Events, count: int) -> list[tuple[int, bool]]:
    """Return the numbers of the next events with whether they complete the state."""
    found = [await anext(events) for _ in range(count)]
    return [(number_of(event), isinstance(event, Event) and event.completes_state) for event in found]


async def test_state_comes_first_and_its_last_event_completes_it(autojump_clock: MockClock) -> None:
    async with serving() as server, client.open(url_of(server)) as inbox:
        await keep(server, 1, 2, 1)
        await keep(server, 3)
        events = inbox.events(begin="current")
        begun, found = await state_of(events, 3)
        epoch = server.log.epoch
        assert begun == State(position=f"{epoch}-0", until=f"{epoch}-4", missing=())
        assert found == [(2, False), (1, False), (3, True)]
        await append(server, 4, 4)
        assert await take(events, 1) == [4]


async def test_empty_state_and_missing_types_are_reported(autojump_clock: MockClock) -> None:
    async with serving() as server, client.open(url_of(server)) as inbox:
        begun, _ = await state_of(inbox.events(begin="current"), 0)
        assert begun.until == begun.position
        assert begun.missing == ("channel.updated", "message.updated", "metadata.updated", "tag.updated")
        await keep(server, 1, marks=str(Marks(kept=TAGS, types=TAGS)))
        await trio.sleep(STATE_AGE_S)
        begun, found = await state_of(inbox.events("/events/tag.updated", begin="current"), 1)
        assert begun.missing == ("tag.updated",)
        assert found == [(1, True)]


async def test_lost_connection_continues_the_state(autojump_clock: MockClock) -> None:
    async with (
        serving() as server,
        cutting(server.port, Random(SEED)) as cutter,
        client.open(f"ws://{HOST}:{cutter.port}") as inbox,
    ):
        await keep(server, 1, 2, 3)
        events = inbox.events(begin="current")
        _, found = await state_of(events, 1)
        assert found == [(1, False)]
        await cutter.cut()
        await keep(server, 4)
        assert await take(events, 3) == [2, 3, 4]  # the log has them all, so it continues after the first
        await keep(server, 5)
        assert await take(events, 1) == [5]


@pytest.mark.parametrize("rest", [(2, 3, 4), (2, 4, 5)], ids=["its last event is at its end", "it has none there"])
async def test_resumed_state_is_completed_at_its_end(rest: tuple[int, ...], autojump_clock: MockClock) -> None:
    """A server that resumes within the state marks no event. The connection is lost after the first one."""
    subscribes: list[str] = []

    async def answer(text: str, socket: WebSocketConnection) -> None:
        if text.startswith("CONNECT"):
            await socket.send_message(CONNECTED)
            return
        subscribes.append(text)
        resumed = len(subscribes) > 1
        verdict = "position:abcdef-1\nresume:resumed" if resumed else "position:abcdef-0\nuntil:abcdef-3\nresume:live"
        await socket.send_message(f"RECEIPT\nreceipt-id:0\n{verdict}\n\n\0")
        for number in rest if resumed else (1,):
            headers = f"subscription:0\nmessage-id:abcdef-{number}\ndestination:/events"
            await socket.send_message(f"MESSAGE\n{headers}\n\n{tag(number).body.decode()}\0")
        if not resumed:
            await socket.aclose()

    async with scripted(answer) as url, client.open(url) as inbox:
        events = inbox.events(begin="current")
        _, found = await state_of(events, 1)
        found += await completions(events, 3)
    assert "last-event-id:abcdef-1" in subscribes[1]
    assert found == [(1, False), *((number, number == rest[1]) for number in rest)]


async def test_expired_position_gives_the_state(autojump_clock: MockClock) -> None:
    async with serving() as server, client.open(url_of(server)) as inbox:
        await keep(server, 1, 2, 3)
        await server.log.store.trim(age_s=3600, keep=1, limit=100, unused_s=10**6)
        await server.log.open()
        for saved in (f"{server.log.epoch}-1", "garbage"):
            _, found = await state_of(inbox.events(position=saved, begin="current"), 3)
            assert found == [(1, False), (2, False), (3, True)]
