"""Upgrade and rollback: servers resume, and a schema that is too new is reported in one line."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
import trio

from airy_trio import migrate
from airy_trio.app.build import opened_store
from airy_trio.migrate import Stream
from airy_trio.settings import Settings
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import StompClient, connect
from tests.application import Application
from tests.command_line import CommandLine
from tests.e2e.route import HOST, assert_in_order, assert_same_epoch, configure, event_of, listening
from tests.newer_schema import MARK, NEWER_SCHEMA, home_of, move_ahead, newer, trigger_of
from tests.older_schema import downgrade
from tests.processes import Finished, server
from tests.redis_server import RedisServer

TIMEOUT_S = 55.0
STREAMS: Sequence[Stream] = ("changes", "log")
AUTH = '[auth]\nmode = "tokens"\ntokens = { ann = "s3cret" }\n'
SETTINGS = {"changes": "database", "log": "log"}


def ahead(stream: Stream) -> str:
    """Return the beginning of a line about a schema after ``move_ahead``."""
    return f"airy_trio is at {newer(stream)}, of a newer version of airy-trio"


def refusals(finished: Finished) -> list[str]:
    """Return the result of a command, without the warnings about the tests' Postgres."""
    assert "Traceback" not in finished.err
    lines = finished.err.splitlines()
    return [line for line in lines if line.startswith("airy-trio: ") and not line.startswith("airy-trio: warning")]


@pytest.mark.slow
async def test_server_runs_and_restarts_on_a_newer_schema(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as before:
            async with listening(before) as ours:
                any_application.tag("t1")
                [seen] = await ours.take(1)
                for stream in STREAMS:
                    move_ahead(any_application, stream)
                any_application.tag("t2")
                assert (await ours.next()).object == ("tag", "t2")
            await before.terminate()
            assert_same_epoch(before)
        any_application.tag("t3")
        async with server(config) as serving:
            for stream in STREAMS:
                await serving.record(NEWER_SCHEMA, **{SETTINGS[stream]: ahead(stream)})
            async with listening(serving, after=seen.position) as ours:
                assert ours.receipt.get("resume") == "resumed"
                any_application.tag("t4")
                assert [event.object[-1] for event in await ours.take(3)] == ["t2", "t3", "t4"]
                assert_in_order([seen, *ours.events])
            assert_same_epoch(serving)


def test_commands_do_not_change_a_compatible_newer_schema(
    any_application: Application, tmp_path: Path, command_line: CommandLine
) -> None:
    config = str(configure(any_application, tmp_path))
    for stream in STREAMS:
        move_ahead(any_application, stream)
    notes = [f"{SETTINGS[stream]}: {ahead(stream)}, with which this version works" for stream in STREAMS]

    checked = command_line("check", "--config", config)
    assert (checked.code, refusals(checked)) == (0, [])
    assert set(notes) < set(checked.out.splitlines())
    assert 'table "tags" (tags) has triggers of another mapping or version: airy_trio_tags_insert\n' in checked.out

    untouched = [f"{note}: nothing done to its tables and triggers" for note in notes]
    migrated = command_line("migrate", "--config", config)
    assert (migrated.code, migrated.err) == (0, "")
    assert migrated.out.splitlines()[1:] == untouched
    previewed = command_line("migrate", "--sql", "--config", config)
    assert (previewed.code, previewed.out.splitlines()) == (0, [f"-- {line}" for line in untouched])

    removed = command_line("migrate", "--remove", "--config", config)
    refusal = f"airy-trio: database: {ahead('changes')}: nothing removed; run migrate --remove of that version"
    assert (removed.code, refusals(removed)) == (1, [refusal])
    assert MARK in (trigger_of(any_application) or "")


@pytest.mark.parametrize("stream", STREAMS)
def test_schema_that_is_too_new_is_one_line(
    any_application: Application, tmp_path: Path, command_line: CommandLine, stream: Stream
) -> None:
    config = str(configure(any_application, tmp_path))
    move_ahead(any_application, stream, newer(stream))
    begin = f"airy-trio: {SETTINGS[stream]}: {ahead(stream)}"
    too_new = f"{begin}, with which this version does not work; install the newer version"
    for command in ([], ["check"], ["migrate"], ["migrate", "--sql"]):
        finished = command_line(*command, "--config", config)
        assert (finished.code, refusals(finished)) == (1, [too_new])
    removed = command_line("migrate", "--remove", "--config", config)
    refusal = f"{begin}: nothing removed; run migrate --remove of that version"
    assert (removed.code, refusals(removed)) == (1, [refusal])
    home = home_of(any_application, stream)
    assert home.scalar(f"select version_num from {home.log_table(f'{stream}_version')}") == newer(stream)
    home.engine.dispose()


@pytest.mark.slow
async def test_migrate_at_start_does_not_change_a_newer_schema(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path, "migrate = true\n")
    move_ahead(any_application, "changes")
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving:
            await serving.record(NEWER_SCHEMA)
        assert MARK in (trigger_of(any_application) or "")


@pytest.mark.slow
async def test_sqlite_server_restores_only_missing_triggers(sqlite_application: Application, tmp_path: Path) -> None:
    config = configure(sqlite_application, tmp_path)
    rebuilt = "create table channels (id text primary key, source text, source_channel_id text, connected boolean)"
    put_back = "triggers restored; rows written without them were not captured"
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            move_ahead(sqlite_application, "changes")
            sqlite_application.execute("drop table channels", rebuilt)
            await serving.record(put_back)
            assert MARK in (trigger_of(sqlite_application) or "")
            sqlite_application.tag("t1")
            sqlite_application.channel("c1")
            assert [event.object for event in await ours.take(2)] == [("tag", "t1"), ("channel", "c1")]

            sqlite_application.execute(
                "update airy_trio_change_state set compatible_from = 'changes_9999'", "drop table channels", rebuilt
            )
            refused = await serving.record("the schema has changed; its triggers are left as they are")
            assert "with which this version does not work" in refused["reason"]
            sqlite_application.channel("c2")  # no trigger of an older version may fail the application's writes
        triggers = "select count(*) from sqlite_master where type = 'trigger' and tbl_name = 'channels'"
        assert sqlite_application.scalar(triggers) == 0


def older_schemas() -> list[tuple[str, ...]]:
    """Return the older revisions in groups: the first of each stream, the second of each, and so on."""
    older: list[list[str]] = []
    for stream in STREAMS:
        files = sorted((migrate.migrations_folder() / stream).glob("[0-9]*.py"))
        found = [f"{stream}_{file.name[:4]}" for file in files]
        older.append([revision for revision in found if revision != migrate.head(stream)])
    return [tuple(filter(None, revisions)) for revisions in zip_longest(*older)]


async def go_back(application: Application, settings: Settings, revision: str) -> None:
    """Bring the schema, with its data, and the resume point into the state of an older revision."""
    stream: Stream = "log" if revision.startswith("log") else "changes"
    if revision == "changes_0001":
        async with opened_store(settings) as store:
            point = await store.resume_point()
            assert point is not None
            stored = await store.append((await store.bounds()).head, [], point_of_0001(point))
            assert stored is not None
    home = home_of(application, stream)
    with home.engine.begin() as connection:
        downgrade(connection, stream, home.names, revision)
    assert home.scalar(f"select version_num from {home.log_table(f'{stream}_version')}") == revision
    home.engine.dispose()


def point_of_0001(point: str) -> str:
    """Return a resume point in the format of ``changes_0001``."""
    found = json.loads(point)
    if "token" in found:  # of SQLite
        return json.dumps([found["seq"], found["token"]])
    return json.dumps({key: found[key] for key in ("system", "timeline", "snapshot", "place", "target")} | {"seq": 0})


async def subscribe_durably(client: StompClient) -> Frame:
    headers = [("durable", "inbox"), ("ack", "client-individual"), ("replay", "all")]
    receipt = await client.subscribe(headers=headers)
    assert receipt.command == "RECEIPT", receipt
    return receipt


async def assert_goes_on_after_upgrade(
    application: Application, folder: Path, revisions: Sequence[str], more: str = ""
) -> None:
    config = configure(application, folder, more + AUTH)
    passcode = [("passcode", "s3cret")]
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as before, await connect(HOST, before.port, headers=passcode) as client:
            await subscribe_durably(client)
            application.tag("t1")
            frame = await client.receive()
            seen = event_of(frame)
            await client.acknowledge(frame, headers=[("receipt", "written")])
            assert (await client.receive()).get("receipt-id") == "written"
            await before.kill()
        application.tag("t2")
        for revision in revisions:
            await go_back(application, application.settings(more), revision)
        application.tag("t3")
        application.migrate(more)
        application.tag("t4")

        async with server(config) as serving, await connect(HOST, serving.port, headers=passcode) as client:
            receipt = await client.subscribe(headers=[("last-event-id", seen.position)])
            assert receipt.get("resume") == "resumed"
            events = [event_of(await client.receive()) for _ in range(3)]
            assert [event.object[-1] for event in events] == ["t2", "t3", "t4"]
            assert [event.offset for event in events] == list(range(seen.offset + 1, seen.offset + 4))
            assert_in_order([seen, *events])
            if "log_0001" not in revisions:  # log_0001 had no durable subscriptions
                async with await connect(HOST, serving.port, headers=passcode) as other:
                    assert (await subscribe_durably(other)).get("resume") == "resumed"
                    assert event_of(await other.receive()) == events[0]
            assert_same_epoch(serving)


@pytest.mark.slow
@pytest.mark.parametrize("revisions", older_schemas(), ids=" ".join)
async def test_upgrade_from_each_older_schema_resumes(
    any_application: Application, tmp_path: Path, revisions: Sequence[str]
) -> None:
    await assert_goes_on_after_upgrade(any_application, tmp_path, revisions)


@pytest.mark.slow
async def test_upgrade_with_redis_resumes(any_application: Application, tmp_path: Path, own_redis: RedisServer) -> None:
    more = f'[log]\nstore = "redis"\nurl = "{own_redis.url}"\n'
    await assert_goes_on_after_upgrade(any_application, tmp_path, ["changes_0001"], more)
