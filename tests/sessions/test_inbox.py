"""``Inbox.unless_gone``: waiting on a client's behalf while its messages are read ahead."""

import pytest
import trio
from trio.testing import MockClock

from airy_trio.sessions.conversation import Inbox
from airy_trio.websocket.stream import InputEnded


class Client:
    """Sends one message a second; ``leaves``: then disconnects."""

    def __init__(self, count: int, *, leaves: bool = False) -> None:
        self.received = 0
        self._count = count
        self._leaves = leaves

    async def receive(self) -> bytes:
        if self.received == self._count and not self._leaves:
            await trio.sleep_forever()
        await trio.sleep(1)
        if self.received == self._count:
            raise InputEnded
        self.received += 1
        return b"%d" % self.received


async def answer_after(seconds: float) -> str:
    await trio.sleep(seconds)
    return "answer"


async def test_messages_during_the_wait_come_next_in_order(autojump_clock: MockClock) -> None:
    inbox = Inbox(Client(4).receive, trio.lowlevel.checkpoint, bytes_max=10_000)
    assert await inbox.unless_gone(answer_after(2.5)) == "answer"
    assert [await inbox.next() for _ in range(4)] == [b"1", b"2", b"3", b"4"]


async def test_leaving_cancels_the_work(autojump_clock: MockClock) -> None:
    inbox = Inbox(Client(2, leaves=True).receive, trio.lowlevel.checkpoint, bytes_max=10_000)
    with pytest.raises(InputEnded):
        await inbox.unless_gone(answer_after(1000))
    assert trio.current_time() < 5


async def test_reading_ahead_is_bounded(autojump_clock: MockClock) -> None:
    client, received = Client(100), []
    inbox = Inbox(client.receive, trio.lowlevel.checkpoint, bytes_max=200)
    for _ in range(2):
        await inbox.unless_gone(answer_after(50))
        received.append(client.received)
        for _ in range(4):
            await inbox.next()
    assert received == [4, 8]


async def test_an_exception_of_the_work_is_not_wrapped(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.sleep(1)
        raise LookupError("away")

    with pytest.raises(LookupError, match="away"):
        await Inbox(Client(0).receive, trio.lowlevel.checkpoint, bytes_max=200).unless_gone(fail())


async def test_read_fault_at_the_end_of_work_comes_next(autojump_clock: MockClock) -> None:
    inbox = Inbox(Client(1, leaves=True).receive, trio.lowlevel.checkpoint, bytes_max=200)

    async def work() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)  # the client leaves at this moment
        return "answer"

    assert await inbox.unless_gone(work()) == "answer"
    assert await inbox.next() == b"1"
    with pytest.raises(InputEnded):
        await inbox.next()
