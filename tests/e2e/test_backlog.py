"""A server that is killed in the middle of a backlog, again and again, continues at the same page."""

from pathlib import Path

import pytest
import trio

from tests.application import Application
from tests.drill.log_check import log_of
from tests.e2e.route import Event, assert_in_order, configure, listening
from tests.processes import server

TIMEOUT_S = 50.0
ROWS = 2000
KILLED_AFTER = (1, 2, 300)
"""The numbers of received events at which the server is killed."""
PAGES = "[changes]\nbatch_rows_max = 8\n"


@pytest.mark.slow
async def test_server_killed_in_a_backlog_continues(any_application: Application, tmp_path: Path) -> None:
    """The backlog is of one transaction, so it is one snapshot difference, read in pages up to a fixed end."""
    config = configure(any_application, tmp_path, PAGES)
    rows = [f"n{number}" for number in range(ROWS)]
    any_application.execute("insert into tags values " + ", ".join(f"('{id_}', 'x', 'red')" for id_ in rows))
    received: list[Event] = []
    recorded = [0]
    waiting: list[int] = []
    with trio.fail_after(TIMEOUT_S):
        for count in KILLED_AFTER:
            async with server(config) as doomed, listening(doomed, headers=[("replay", "all")]) as ours:
                waiting.append((await doomed.record("change log"))["rows"])
                for event in received:
                    assert await ours.next() == event
                received += await ours.take(count)
                await doomed.kill()
            recorded.append(len(log_of(any_application)))
        any_application.tag("last")
        async with server(config) as serving, listening(serving, after=received[-1].position) as ours:
            assert ours.receipt.get("resume") == "resumed"
            received += await ours.upto(lambda event: event.object == ("tag", "last"))
            assert await serving.terminate() == 0
    assert waiting[0] == ROWS, "a server that starts logs the backlog"
    assert recorded == sorted(set(recorded))
    assert recorded[-1] < ROWS, "no kill fell into the middle"
    assert [event.object[1] for event in received] == [*rows, "last"]
    assert [event.offset for event in received] == list(range(1, ROWS + 2))
    assert_in_order(received)
    assert log_of(any_application) == received
