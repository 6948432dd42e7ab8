import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.events.destinations import EVERYTHING, OfConversation
from airy_trio.log.eventlog import EventLog
from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.websocket.fanout import YIELD_EVERY, fan_out
from airy_trio.websocket.subscriptions import Client, Subscription
from tests.websocket.serving import event, events, open_log


def subscribed(log: EventLog, destination: OfConversation | None = None, *, started: bool = True) -> Subscription:
    client = Client(Connection(ConnectionOptions(session="s1", server="airy-trio/test")))
    subscription = Subscription(client, 1, b"", log.head, started=started)
    subscription.view = log.attach(destination or EVERYTHING, subscription)
    return subscription


async def test_only_who_reads_what_grew_is_woken(autojump_clock: MockClock) -> None:
    log = await open_log()
    all_, mine = subscribed(log), subscribed(log, OfConversation("mine"))
    theirs, unready = subscribed(log, OfConversation("theirs")), subscribed(log, started=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan_out, log)
        await log.append(log.head, [event(1, conversation="mine")], "point")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [one.client.wakened.is_set() for one in (all_, mine, theirs, unready)] == [True, True, False, False]


async def test_many_readers_do_not_keep_other_tasks_waiting(autojump_clock: MockClock) -> None:
    log = await open_log()
    readers = [subscribed(log) for _ in range(3 * YIELD_EVERY)]
    woken_at_turn: list[int] = []

    async def look() -> None:
        while not woken_at_turn or woken_at_turn[-1] < len(readers):
            woken_at_turn.append(sum(reader.client.wakened.is_set() for reader in readers))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan_out, log)
        await wait_all_tasks_blocked()
        await log.append(log.head, events(1, 1), "point")
        await look()
        nursery.cancel_scope.cancel()
    assert len({count for count in woken_at_turn if count}) >= 2
