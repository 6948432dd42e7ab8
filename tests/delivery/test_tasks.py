"""Tasks of sessions: one that fails disconnects its own client only."""

from typing import cast

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.delivery import disconnects
from airy_trio.delivery.client import Client
from airy_trio.delivery.tasks import Tasks
from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.websocket.stream import FramedStream


def client() -> Client:
    return Client(Connection(ConnectionOptions(server="airy-trio/test"), "s1"), cast("FramedStream", None))


async def test_a_failing_task_disconnects_only_its_client(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        message = "bug"
        raise RuntimeError(message)

    one, other = client(), client()
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            Tasks(nursery, one).start_soon(fail)
            tasks = Tasks(nursery, other)
            tasks.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            assert one.reason is disconnects.INTERNAL
            assert other.reason is None
            await tasks.stop()
    assert [line["event"] for line in logs] == ["session failed"]


async def test_stop_waits_for_all_tasks_even_those_not_started(autojump_clock: MockClock) -> None:
    ended: list[str] = []

    async def linger(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(5, shield=True):
                await trio.sleep(1)
            ended.append(name)

    async with trio.open_nursery() as nursery:
        tasks = Tasks(nursery, client())
        tasks.start_soon(linger, "begun")
        await wait_all_tasks_blocked()
        tasks.start_soon(linger, "not begun")
        await tasks.stop()
        assert sorted(ended) == ["begun", "not begun"]
        await tasks.stop()


async def test_cancellation_from_outside_propagates(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        one = client()
        tasks = Tasks(nursery, one)
        tasks.start_soon(trio.sleep_forever)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert one.reason is None
    with trio.fail_after(1):
        await tasks.stop()


async def test_a_system_exit_passes_through() -> None:
    async def leave() -> None:
        await trio.lowlevel.checkpoint()
        raise SystemExit(3)

    with pytest.RaisesGroup(SystemExit):
        async with trio.open_nursery() as nursery:
            Tasks(nursery, client()).start_soon(leave)
