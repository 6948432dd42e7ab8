"""A client disconnects, the server is killed while hundreds of rows change, both return: nothing is lost."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.application import Application
from tests.clients.client_processes import stompjs, stompman
from tests.e2e.route import Event, Writer, assert_in_order, configure, events_of, listening, writing
from tests.processes import server

TIMEOUT_S = 50.0
OBJECTS = 500
SEEN_BEFORE_THE_KILL = 50


def channel(number: int) -> str:
    return f"insert into channels values ('n{number}', 's', '{number}', true)"


def objects(events: Sequence[Event]) -> list[str]:
    return [event.object[-1] for event in events]


async def change_five_hundred(application: Writer) -> None:
    """Write one transaction for each; most are requested one by one, so that the kill happens among them."""
    batch = OBJECTS // 5
    for number in range(OBJECTS - batch):
        await application.apply(channel(number))
    await application.apply(*(channel(number) for number in range(OBJECTS - batch, OBJECTS)))


@pytest.mark.slow
async def test_client_resumes_after_a_kill_of_the_server(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    changed = [f"n{number}" for number in range(OBJECTS)]
    with trio.fail_after(TIMEOUT_S):
        async with writing(any_application) as application:
            async with server(config) as doomed:
                await application.apply("insert into tags values ('t1', 'before', 'red')")
                async with listening(doomed) as ours:
                    [seen] = await ours.take(1)
                async with listening(doomed, after=seen.position) as other, trio.open_nursery() as nursery:
                    nursery.start_soon(change_five_hundred, application)
                    seen_by_other = await other.take(SEEN_BEFORE_THE_KILL)
                    await doomed.kill()

            async with server(config) as serving:
                async with listening(serving, after=seen.position) as ours:
                    assert ours.receipt.get("resume") == "resumed"
                    assert ours.receipt.get("position") == seen.position
                    missed = await ours.take(OBJECTS)
                    assert objects(missed) == changed
                    assert missed[:SEEN_BEFORE_THE_KILL] == seen_by_other
                    assert [event.offset for event in missed] == list(range(seen.offset + 1, seen.offset + 1 + OBJECTS))
                    assert_in_order([seen, *missed])

                    async with stompjs(serving.url, last_event_id=seen.position) as javascript:
                        assert events_of(await javascript.messages(OBJECTS)) == missed
                    async with stompman(serving.url, last_event_id=seen.position) as python:
                        assert events_of(await python.messages(OBJECTS)) == missed

                    await application.apply("update tags set name = 'live' where id = 't1'")
                    live = await ours.next()
                    assert (live.object, live.payload["name"]) == (("tag", "t1"), "live")
                    assert live.offset == missed[-1].offset + 1

                async with listening(serving) as ours:  # an unmodified client
                    assert ours.receipt.get("resume") == "live"
                    assert await ours.take(OBJECTS + 1) == [*missed, live]  # without what was replaced
                    await application.end()
                    assert await ours.upto_end() == []


@pytest.mark.slow
async def test_stock_client_reconnects_by_itself(sqlite_application: Application, tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with (
            writing(sqlite_application) as application,
            server(configure(sqlite_application, tmp_path)) as doomed,
            stompjs(doomed.url) as client,
        ):
            await application.apply(channel(1))
            await client.messages(1)
            await application.apply(channel(2))
            await client.messages(2)
            await doomed.kill()
            await application.apply(channel(3), "update channels set connected = false where id = 'n1'")
            async with server(configure(sqlite_application, tmp_path, port=doomed.port)):
                received = events_of(await client.messages(5))
    assert_in_order(received[:2])
    assert_in_order(received[2:])
    assert objects(received) == ["n1", "n2", "n2", "n3", "n1"]
    assert received[1] == received[2], "an event that it already had has the same position"
