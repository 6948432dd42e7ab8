"""Rows from before the first server: after a backfill, replay:current has exactly the rows of the database.

Meanwhile the application writes and deletes, on both databases. ``tests/drill/test_current.py`` has the event
store in memory, with tags only.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio

from airy_trio.app.build import opened_store
from airy_trio.database import SQLITE
from airy_trio.log.current import CurrentState
from airy_trio.settings import Settings, load
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import connect
from tests.application import Application
from tests.e2e.route import HOST, Writer, configure, event_of, last_of_each, writing
from tests.processes import Server, run, server
from tests.redis_server import RedisServer

TIMEOUT_S = 40.0
ROWS = 400
KEPT = ["channel.updated", "message.updated", "metadata.updated", "tag.updated"]
Table = Mapping[tuple[str, ...], dict[str, Any]]


@pytest.fixture(params=["sql", "redis"])
def log(request: pytest.FixtureRequest) -> str:
    """Settings of an event log that keeps all types."""
    kept = ", ".join(f'"{type_}"' for type_ in KEPT)
    lines = f'[log]\nstore = "{request.param}"\nkeep_current = [{kept}]\n'
    if request.param == "redis":
        redis: RedisServer = request.getfixturevalue("own_redis")
        lines += f'url = "{redis.url}"\n'
    return lines


def fill(application: Application) -> None:
    """Write rows of all kinds that no trigger has seen."""
    for number in range(3):
        application.channel(f"ch{number}")
    with application.engine.begin() as connection:
        rows = [{"id": f"t{number:04}"} for number in range(ROWS)]
        connection.execute(sa.text("insert into tags (id, name, color) values (:id, 'flag', 'red')"), rows)
        connection.execute(
            sa.text("insert into metadata (subject, identifier, key, value) values ('channel', :id, 'a', 'b')"), rows
        )
        connection.execute(
            sa.text("insert into metadata (subject, identifier, key, value) values ('channel', :id, 'c', 'd')"), rows
        )
    for number in range(20):
        application.message(id=f"m{number}")
    application.execute(f"delete from {application.log_table('change_log')}")


async def write(writer: Writer, seed: int) -> None:
    """Insert, update, delete and rename rows until cancelled."""
    chance, number = random.Random(seed), ROWS
    while True:
        id_, other = (f"t{chance.randrange(ROWS):04}" for _ in range(2))
        number += 1
        with trio.CancelScope(shield=True):  # a writer that is cancelled within a request cannot be used again
            await writer.apply(
                f"insert into tags (id, name, color) values ('t{number:04}', 'new', 'blue')",
                f"update tags set name = 'green{number}' where id = '{id_}'",
                f"delete from tags where id = '{other}'",
                f"update tags set id = 'r{number}' where id = 't{number - 5:04}'",
                f"delete from metadata where identifier = '{other}'",
                f"update metadata set value = 'v{number}' where identifier = '{id_}' and key = 'a'",
                f"delete from messages where id = 'm{chance.randrange(40)}'",
            )
        await trio.sleep(0.02)


def rows_of(application: Application) -> dict[tuple[str, ...], Any]:
    """Return what a client should have, by object: a value that differs between states."""
    with application.engine.begin() as connection:
        found: dict[tuple[str, ...], Any] = {}
        for id_, name in connection.execute(sa.text("select id, name from tags")):
            found["tag", id_] = name
        for (id_,) in connection.execute(sa.text("select id from messages")):
            found["message", id_] = id_
        for (id_,) in connection.execute(sa.text("select id from channels")):
            found["channel", id_] = id_
        metadata: dict[tuple[str, ...], dict[str, str]] = {}
        for subject, id_, key, value in connection.execute(
            sa.text("select subject, identifier, key, value from metadata")
        ):
            metadata.setdefault(("metadata", subject, id_), {})[key] = value
    return found | metadata


def shown(table: Table) -> dict[tuple[str, ...], Any]:
    """Return the same for events."""
    of: dict[str, Callable[[dict[str, Any]], Any]] = {
        "tag": lambda payload: payload["name"],
        "message": lambda payload: payload["message"]["id"],
        "channel": lambda payload: payload["id"],
        "metadata": lambda payload: payload["metadata"],
    }
    return {object_: of[object_[0]](payload) for object_, payload in table.items()}


async def current(serving: Server) -> tuple[Frame, Table]:
    """Return the RECEIPT of replay:current, and the state that follows it."""
    async with await connect(HOST, serving.port) as client:
        receipt = await client.subscribe(headers=[("replay", "current")])
        assert receipt.command == "RECEIPT", receipt
        events = []
        if receipt.get("position") != receipt.get("until"):
            while True:
                frame = await client.receive()
                events.append(event_of(frame))
                if frame.get("state") == "complete":
                    break
    table = last_of_each(events)
    assert len(table) == len(events)  # each object once
    return receipt, table


async def until(serving: Server, is_reached: Callable[[Frame, Table], bool]) -> tuple[Frame, Table]:
    """Return the RECEIPT and the state once ``is_reached`` accepts them."""
    while not is_reached(*(found := await current(serving))):  # noqa: ASYNC110 - the server is another process
        await trio.sleep(0.1)
    return found


async def whole(serving: Server, application: Application) -> Table:
    """Return the current state once it is complete and has the rows of the database, to which no process writes now."""

    def is_whole(receipt: Frame, table: Table) -> bool:
        return receipt.get("state") == "current" and shown(table) == rows_of(application)

    _, table = await until(serving, is_whole)
    return table


async def backfill(config: Path, *arguments: str) -> None:
    ended = await run("backfill", "--config", str(config), *arguments)
    assert ended.code == 0, ended
    assert "replay:current has" in ended.out


async def kept_in_store(settings: Settings) -> tuple[frozenset[str], int]:
    """Return the types that are complete in the event store, and the number of events that it keeps."""
    async with opened_store(settings, create=False) as store:
        bounds = await store.bounds()
        state = CurrentState.of(bounds, bounds.head)
        assert state.at is not None
        return state.whole, len(await store.current(state.at, state.until.at(0), 10_000))


async def test_rows_from_before_while_the_application_writes(
    any_application: Application, tmp_path: Path, log: str
) -> None:
    config = configure(any_application, tmp_path, log)
    fill(any_application)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, writing(any_application) as writer:
            receipt, _ = await current(serving)
            assert (receipt.get("state"), receipt.get("state-missing")) == ("partial", ",".join(KEPT))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, writer, 17)
                await trio.sleep(0.2)
                await backfill(config, "--rate", "1000")
                nursery.cancel_scope.cancel()
            await writer.apply("insert into tags (id, name, color) values ('last', 'last', 'red')")
            table = await whole(serving, any_application)
            assert ("tag", "last") in table
            assert await kept_in_store(load(config, {})) == (frozenset(KEPT), len(table))


def delete_unnoticed(application: Application, id_: str) -> None:
    """Delete a tag without its trigger."""
    delete = f"delete from tags where id = '{id_}'"
    if application.dialect != SQLITE:
        application.execute("set local session_replication_role = replica", delete)
        return
    name = "airy_trio_tags_delete"
    create = application.scalar(f"select sql from sqlite_master where name = '{name}'")
    with application.engine.begin() as connection:
        for statement in (f"drop trigger {name}", delete, create):
            connection.exec_driver_sql(statement)


async def test_ghosts_leave_the_state_with_the_end_of_a_backfill(
    any_application: Application, tmp_path: Path, log: str
) -> None:
    config = configure(any_application, tmp_path, log)
    fill(any_application)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving:
            await backfill(config)
            await whole(serving, any_application)
            delete_unnoticed(any_application, "t0007")
            any_application.tag("t7777")
            _, table = await until(serving, lambda _, table: ("tag", "t7777") in table)
            assert ("tag", "t0007") in table
            await backfill(config, "tags")
            assert ("tag", "t0007") not in await whole(serving, any_application)


async def test_another_mapping_begins_the_state_again(sqlite_application: Application, tmp_path: Path) -> None:
    """Also before the next change. Of a type that is not kept, the mapping does not matter."""
    config = configure(sqlite_application, tmp_path)
    sqlite_application.tag()
    found = []
    changes = ('[database.tables.messages.columns]\nsource = "id"\n', '[database.tables.tags.columns]\nname = "id"\n')
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving:
            await backfill(config)
            await until(
                serving,
                lambda receipt, table: (
                    (receipt.get("state-missing"), len(table)) == ("message.updated,metadata.updated", 1)
                ),
            )
            await serving.terminate()
        for more in changes:
            configure(sqlite_application, tmp_path, more)
            async with server(config) as serving:
                receipt, table = await current(serving)
                found.append((receipt.get("state-missing"), len(table)))
                await serving.terminate()
    every = "channel.updated,message.updated,metadata.updated,tag.updated"
    assert found == [("message.updated,metadata.updated", 1), (every, 0)]


async def test_state_is_whole_after_a_restart(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    any_application.channel()
    any_application.tag()
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving:
            await backfill(config)
            await until(serving, lambda receipt, _: receipt.get("state-missing") == "message.updated,metadata.updated")
            checked = await run("check", "--config", str(config))
            assert "replay:current has channel.updated, tag.updated completely" in checked.out
            await serving.terminate()
        any_application.tag("t2")
        async with server(config) as serving:
            receipt, table = await until(serving, lambda _, table: ("tag", "t2") in table)
            assert receipt.get("state-missing") == "message.updated,metadata.updated"
            assert table.keys() == {("channel", "ch1"), ("tag", "t1"), ("tag", "t2")}


async def test_types_that_are_not_kept_are_sent_from_the_recent_window(
    any_application: Application, tmp_path: Path
) -> None:
    """In one subscription, between the events of the state; of each object the newest event.

    The limit of six events ends the window before the first message, whether or not changes share an event.
    """
    config = configure(any_application, tmp_path, "[replay]\nevents_max = 6\n")
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, writing(any_application) as writer:
            any_application.message(id="before")
            any_application.tags(range(1, 3))
            any_application.message(id="m1", delivery_state="pending")
            any_application.message(id="m2")
            await writer.apply("update messages set delivery_state = 'delivered' where id = 'm1'")
            any_application.channel("ch1")
            any_application.tag("gone")
            await writer.apply("delete from tags where id = 'gone'")
            any_application.message(id="m3")
            sent = [("message", "m2"), ("message", "m1"), ("channel", "ch1"), ("message", "m3")]
            receipt, table = await until(serving, lambda _, table: ("message", "m3") in table)
            assert list(table) == [("tag", "t1"), ("tag", "t2"), *sent]
            assert table["message", "m1"]["message"]["delivery_state"] == "delivered"
            assert receipt.get("state-missing") == ",".join(KEPT)
