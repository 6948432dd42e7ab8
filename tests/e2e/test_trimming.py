"""While a server runs, neither the change log nor the event log grows without bound, and nothing is lost."""

from pathlib import Path

import trio

from airy_trio.database import SQLITE
from airy_trio.log.recorder import TRIM_CHANGES_MAX
from tests.application import Application
from tests.drill.log_check import log_of
from tests.e2e.route import Event, assert_in_order, configure, listening
from tests.processes import server

TIMEOUT_S = 40.0
ROWS = 2 * TRIM_CHANGES_MAX + 10  # more than two trimming transactions delete
RETAINED = 20


async def until_trimmed(application: Application) -> None:
    """Wait until both logs are trimmed. On SQLite the newest row of the change log stays."""
    rows = f"select count(*) from {application.log_table('change_log')}"
    most = 1 if application.dialect == SQLITE else 0
    while (  # noqa: ASYNC110 - the server does not report it
        await trio.to_thread.run_sync(application.scalar, rows) > most
        or len(await trio.to_thread.run_sync(log_of, application)) > RETAINED
    ):
        await trio.sleep(0.05)


async def test_delivered_changes_are_trimmed_meanwhile(any_application: Application, tmp_path: Path) -> None:
    """Twice, by two servers: the second one continues where the first one has trimmed."""
    config = configure(any_application, tmp_path, f"[log]\nretain_events = {RETAINED}\n")
    received: list[Event] = []
    with trio.fail_after(TIMEOUT_S):
        for life in "ab":
            last = received[-1].position if received else ""
            async with server(config) as serving, listening(serving, after=last) as ours:
                rows = [f"{life}{number}" for number in range(ROWS)]
                values = ", ".join(f"('{id_}', 'x', 'red')" for id_ in rows)
                await trio.to_thread.run_sync(any_application.execute, f"insert into tags values {values}")
                received += await ours.take(ROWS)
                await until_trimmed(any_application)
                any_application.tag(f"{life} last")
                received += await ours.take(1)
                assert await serving.terminate() == 0
            assert [event.object[1] for event in received[-ROWS - 1 :]] == [*rows, f"{life} last"]
    assert_in_order(received)
    assert log_of(any_application)[-1] == received[-1]
