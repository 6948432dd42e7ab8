"""Failures of the database while the server runs: it retries temporary ones, and ends on all others."""

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from airy_trio.migrate import migrate
from airy_trio.testing.client import connect
from tests.application import Application, application
from tests.e2e.route import HOST, Listening, assert_in_order, configure, listening
from tests.postgres import PASSWORD_ROLE, Postgres
from tests.processes import Program, json_object, run, server

TIMEOUT_S = 50.0
TAGS = 50
OUTAGE_S = 30.0
"""Longer than any pause between two attempts, and than a time-out of the database: retries continue."""


async def until_logged(program: Program, event: str, times: int) -> None:
    """Wait until the server has logged this event ``times`` times."""
    for number in itertools.count():
        line = await program.err.line(number)
        assert line is not None, program.err.all
        times -= json_object(line).get("event") == event
        if not times:
            return


def count(program: Program, event: str) -> int:
    return sum(json_object(line).get("event") == event for line in program.err.all)


@pytest.mark.slow
async def test_server_survives_an_outage_of_postgres(own_postgres: Postgres, tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S), application(own_postgres.url(own_postgres.create_database())) as writing:
        async with (
            server(configure(writing, tmp_path)) as serving,
            listening(serving) as ours,
            listening(serving) as other,
        ):
            for times, end in enumerate((Postgres.stop, Postgres.crash), 1):
                last = [f"{times}-{number}" for number in range(TAGS)]
                writing.execute(*(f"insert into tags values ('{id_}', 'the last moment', 'red')" for id_ in last))
                end(own_postgres)
                await until_logged(serving, "recording interrupted", times)
                await until_logged(serving, "event store unavailable", times)
                own_postgres.start()
                writing.engine.dispose()
                writing.tag(f"after {times}")
                received = await ours.take(TAGS + 1)
                assert [event.object[-1] for event in received] == [*last, f"after {times}"]
                await until_logged(serving, "recording again", times)
                await until_logged(serving, "event store available again", times)
            assert [event.offset for event in ours.events] == list(range(1, 2 * (TAGS + 1) + 1))
            assert await other.take(len(ours.events)) == ours.events
            assert await serving.terminate() == 0
    for event in ("recording interrupted", "recording again", "event store unavailable", "event store available again"):
        assert count(serving, event) == 2, event
    assert count(serving, "new epoch") == 0


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_clients_stay_connected_during_a_long_outage(own_postgres: Postgres, tmp_path: Path) -> None:
    """Clients receive heart-beats all the time; the beginning and the end of the outage are each logged once."""
    beats = [("heart-beat", "0,1000")]
    with trio.fail_after(140), application(own_postgres.url(own_postgres.create_database())) as writing:
        async with (
            server(configure(writing, tmp_path)) as serving,
            await connect(HOST, serving.port, headers=beats) as client,
        ):
            ours = Listening(client, await client.subscribe())
            writing.tag("before")
            assert (await ours.next()).object == ("tag", "before")
            writing.tag("the last moment")
            own_postgres.stop()
            await trio.sleep(OUTAGE_S)
            own_postgres.start()
            writing.engine.dispose()
            writing.tag("after")
            assert [event.object[1] for event in await ours.take(2)] == ["the last moment", "after"]
            await until_logged(serving, "recording again", 1)
            await until_logged(serving, "event store available again", 1)
            assert await serving.terminate() == 0
    assert [event.offset for event in ours.events] == [1, 2, 3]
    for event in ("recording interrupted", "recording again", "event store unavailable", "event store available again"):
        assert count(serving, event) == 1, event


async def test_row_level_security_ends_the_server_and_is_reported(
    postgres: Postgres, postgres_application: Application, tmp_path: Path
) -> None:
    """The policy would hide changed rows, so they would count as deleted."""
    config = configure(postgres_application, tmp_path)
    migrate(postgres_application.settings(), grant=PASSWORD_ROLE)
    url = postgres.password_url(postgres_application.url.rpartition("/")[2])
    config.write_text(config.read_text().replace(postgres_application.url, url))
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            postgres_application.tag("seen")
            assert (await ours.next()).object == ("tag", "seen")
            postgres_application.execute("alter table tags enable row level security")
            postgres_application.tag("hidden")
            assert (await ours.client.receive()).get("message") == "500-internal"
            assert await serving.wait() == 1
        again = await run("--config", str(config))
    [message] = [line for line in serving.err.all if not json_object(line)]
    assert message == (
        'airy-trio: InsufficientPrivilege 42501: query would be affected by row-level security policy for table "tags"'
    )
    assert again.code == 1
    [message] = [line for line in again.err.splitlines() if not json_object(line)]
    assert message.startswith('airy-trio: database.tables.tags.name: "tags" is under row level security')
    assert f'ALTER ROLE "{PASSWORD_ROLE}" BYPASSRLS' in message


@pytest.mark.parametrize("database", ["sqlite_application", "postgres_application"])
@pytest.mark.parametrize("put_back", [False, True], ids=["removed", "an older copy"])
async def test_missing_event_file_ends_the_server(
    database: str, put_back: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The server reports the file and ends; the next one begins an epoch and records all remaining changes."""
    writing: Application = request.getfixturevalue(database)
    file, copy = tmp_path / "events.db", tmp_path / "copy.db"
    config = configure(writing, tmp_path, f'[log]\nurl = "sqlite:///{file}"\n')
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            writing.tag("t1")
            first = await ours.next()
            with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            writing.tag("t2")
            await ours.next()
            if put_back:
                copy.replace(file)
            else:
                file.unlink()
            assert (await ours.client.receive()).get("message") == "500-internal"
            assert await serving.wait() == 1
        [message] = [line for line in serving.err.all if not json_object(line)]
        what = "replaced by another file" if put_back else "removed"
        assert message.startswith(f"airy-trio: log.url: the event log {file} was {what}")
        writing.tag("t3")
        async with server(config) as again, listening(again, headers=[("replay", "all")]) as later:
            events = await later.upto(lambda event: event.object == ("tag", "t3"))
            assert first.epoch not in {event.epoch for event in events}
            assert_in_order(events)
            async with await connect(HOST, again.port) as returning:
                receipt = await returning.subscribe(headers=[("last-event-id", first.position)])
                assert receipt.get("resume") == "reset-epoch"
            assert await again.terminate() == 0
