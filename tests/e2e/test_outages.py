"""The database goes away while the server runs: what heals by waiting is waited for, anything else ends the server."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.application import Application, application
from tests.e2e.route import configure, listening
from tests.postgres import Postgres
from tests.processes import Program, json_object, server

TIMEOUT_S = 50.0
END = pytest.mark.parametrize("end", [Postgres.stop, Postgres.crash], ids=["stop", "crash"])


def count(program: Program, event: str) -> int:
    return sum(json_object(line).get("event") == event for line in program.err.all)


@pytest.mark.slow
@END
async def test_postgres_is_away(end: Callable[[Postgres], None], own_postgres: Postgres, tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S), application(own_postgres.url(own_postgres.create_database())) as writing:
        async with (
            server(configure(writing, tmp_path)) as serving,
            listening(serving) as ours,
            listening(serving) as other,
        ):
            writing.tag("before")
            [before] = await ours.take(1)
            writing.execute(
                *(f"insert into tags values ('{number}', 'at the last moment', 'red')" for number in range(50))
            )
            end(own_postgres)
            await serving.record("recording interrupted")
            await serving.record("event store unavailable")
            own_postgres.start()
            writing.engine.dispose()
            writing.tag("after")
            received = await ours.upto(lambda event: event.object == ("tag", "after"))
            assert [event.offset for event in received] == list(range(2, 53))
            assert [event.object[-1] for event in received[:-1]] == [str(number) for number in range(50)]
            assert await other.take(52) == [before, *received]
            await serving.record("recording again")
            await serving.record("event store available again")
            assert await serving.terminate() == 0
    for event in ("recording interrupted", "recording again", "event store unavailable", "event store available again"):
        assert count(serving, event) == 1, event
    assert count(serving, "new epoch") == 0


async def test_change_log_is_dropped(any_application: Application, tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with server(configure(any_application, tmp_path)) as serving, listening(serving):
            any_application.execute(f"drop table {any_application.log_table('change_log')}")
            assert await serving.wait() == 1
    [message] = [line for line in serving.err.all if not json_object(line)]
    assert message.startswith("airy-trio: ")
    assert "change_log" in message
