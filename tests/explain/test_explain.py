"""``airy-trio explain`` on both databases: each outcome for a row, and each reason that prevents an event."""

import re
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
import trio
from attrs import frozen

from airy_trio.admin.server import Answer, PageRequest, Pages
from airy_trio.app import Address
from airy_trio.explain import Subject
from airy_trio.explain import explain as explanation
from airy_trio.settings import load
from airy_trio.testing.client import StompClient, connect
from tests.admin.serving import HOST, Port, admin, free_port, serving_all
from tests.admin.serving import serving as serving_alone
from tests.application import Application, only
from tests.docs.pages import parts
from tests.processes import AIRY_TRIO, Finished, Program, Server, free_ports, run, running

TIMEOUT_S = 50.0
CLIENTS = 16
INSERT_TAG = "insert into tags (id, name, color) values ('t1', 'flag', 'tag-red')"
INSERT_ANOTHER = "insert into tags (id, name, color) values ('t2', 'flag', 'tag-red')"
INSERT_CHANNEL = "insert into channels values ('ch1', 'facebook', 'page', true)"
CHANGE_RECORDED = re.compile(  # retention may have trimmed it already
    r"written 20\S+ by the trigger's clock, recorded$|none in the change log: recorded and trimmed"
)


@frozen
class Explained:
    """The lines by their first word."""

    lines: dict[str, str]
    recorded: bool

    def __getitem__(self, about: str) -> str:
        return self.lines.get(about, "")


async def explain(config: Path, type_: str, id_: str) -> Explained:
    """Return what the command prints, without starting a process."""
    subject = Subject.parse(type_, id_)
    assert subject is not None
    settings = load(config, {})
    recorded, found = await trio.to_thread.run_sync(lambda: explanation(settings, subject))
    assert found[0].startswith("verdict   ")
    lines: dict[str, str] = {}
    for line in found:
        about = line[:10].strip()
        lines[about] = f"{lines[about]}\n{line[10:]}" if about in lines else line[10:]
    return Explained(lines, recorded)


def configure(application: Application, folder: Path, more: str = "", *, port: int = 1) -> Path:
    config = folder / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "{application.url}"\n{more}{admin(port)}')
    return config


@asynccontextmanager
async def serving(application: Application, port: int, more: str = "") -> AsyncIterator[tuple[Address, Port]]:
    with trio.fail_after(TIMEOUT_S):
        async with serving_all(application.settings(f"{more}{admin(port)}")) as served:
            yield served


async def record(application: Application, more: str, *statements: str) -> None:
    """Run a server until it has recorded and delivered one event for each of these statements."""
    async with (
        serving(application, free_port(), more) as (address, _),
        await client(address, "/events") as one,
    ):
        for statement in statements:
            application.execute(statement)
            await one.receive()


async def client(address: Address, destination: str) -> StompClient:
    made = await connect(address.host, address.port, address.path)
    await made.subscribe(destination)
    return made


async def test_from_the_row_to_the_clients(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    port = free_port()
    config = configure(any_application, tmp_path, port=port)
    async with (
        serving(any_application, port) as (address, _),
        await client(address, "/events") as receiving,
        await client(address, "/events/conversation/42"),
        await client(address, "/events/conversation/other"),
        await connect(address.host, address.port, address.path),
    ):
        any_application.message(id="before")
        any_application.message(id="4711", conversation_id="42")
        any_application.message(id="m2")
        for _ in range(3):
            event = await receiving.receive()
        any_application.execute("update messages set delivery_state = 'failed' where id = '4711'")
        event = await receiving.receive()
        found = await explain(config, "message", "4711")
        tail, command = await page_commands(config)
    assert found["row"] == 'there is one in table "messages", which can become an event'
    assert CHANGE_RECORDED.match(found["change"]), found["change"]
    assert found["recorder"].startswith("a server holds the lease and records into ")
    assert found["event"].startswith(f"message.updated at {event.get('message-id')}, recorded 20")
    assert found["event"].endswith(", the newest of 2 that are retained")
    summary = (
        "4 connected: 2 are past it, 0 are not yet, 1 subscribe to other destinations, 1 to none, 0 may not read it"
    )
    assert found["clients"] == summary
    assert found[""].count("session ") == 4
    assert (found["verdict"], found.recorded) == ("recorded: message.updated is in the event log", True)
    assert found["server"] == ""
    assert (command.code, command.err) == (0, "")
    assert f"row       {found['row']}\n" in command.out
    assert tail is not None
    assert tail.split()[1:3] == [event.get("message-id"), "message.updated"]
    assert f"clients   {summary}\n" in command.out


async def page_commands(config: Path) -> tuple[str | None, Finished]:
    """Run the commands of the page about operation; return the second line of ``tail``, and how ``explain`` ended."""
    text = parts("how-to/operate.md", "sh")[0].replace("prod.toml", str(config))
    follow, ask = (shlex.split(line)[1:] for line in text.splitlines())
    async with running(Program, [*AIRY_TRIO, *follow]) as tail:
        explained = await run(*ask)
        return await tail.out.line(1), explained


async def test_keys_that_are_numbers(any_application: Application, tmp_path: Path) -> None:
    any_application.execute(
        "create table tags (id integer primary key, name text, color text)",
        "create table metadata (subject text, identifier integer, key text, value text)",
    )
    more = only(tags="", metadata='constants = { value_type = "text" }')
    any_application.migrate(more, with_tables=False)
    any_application.execute(
        "insert into tags values (17, 'flag', 'red')",
        "insert into metadata values ('message', 17, 'a', 'b'), ('message', 17, 'c', 'd')",
    )
    config = configure(any_application, tmp_path, more)
    for type_, id_ in ("tag", "17"), ("metadata", "message:17"):
        found = await explain(config, type_, id_)
        assert found["row"].endswith(", which can become an event"), id_
        assert found["change"].startswith("written ")
        assert found["verdict"] == "not yet: the change is waiting for a server; no server is recording"


async def test_without_a_server_no_recorder_is_reported(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    any_application.tag()
    found = await explain(configure(any_application, tmp_path), "tag", "t1")
    assert found["row"] == 'there is one in table "tags", which can become an event'
    assert found["change"].startswith("written ")
    assert found["change"].endswith(", not recorded yet")
    assert found["recorder"] == "no server holds the lease: nothing is recorded until one runs"
    assert found["event"].startswith("none is retained (the log has nothing)")
    assert found["verdict"] == "not yet: the change is waiting for a server; no server is recording"
    assert not found.recorded
    assert found["server"] == "no server answers at the admin port 127.0.0.1:1; it is not running here"


async def test_absent_row_and_deleted_row_are_distinguished(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    any_application.channel()
    any_application.execute("delete from channels")
    config = configure(any_application, tmp_path)
    gone = await explain(config, "channel", "ch1")
    assert gone["row"] == 'there is none in table "channels"'
    assert gone["change"].startswith("deleted ")
    never = await explain(config, "channel", "ch2")
    assert never["change"] == "none in the change log: recorded and trimmed, or older than the triggers"


@pytest.mark.parametrize("id_", ["abc", "1", "99999999999999999999"])
async def test_unknown_object_is_reported_as_unknown(
    postgres_application: Application, tmp_path: Path, id_: str
) -> None:
    postgres_application.execute("create table tags (id integer primary key, name text, color text)")
    others = only(tags="")
    postgres_application.migrate(others, with_tables=False)
    config = configure(postgres_application, tmp_path, others)
    found = await explain(config, "tag", id_)
    assert found["row"] == 'there is none in table "tags"'
    assert found["verdict"] == "this object is unknown: no row, no change, no event"
    assert (await run("explain", "--config", str(config), "tag", id_)).code == 1


async def test_row_fault_is_reported(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    any_application.message(delivery_state="lost")
    found = await explain(configure(any_application, tmp_path), "message", "m1")
    assert found["row"].startswith('there is one in table "messages", which cannot be converted (row fault): ')
    assert "messages m1: delivery_state " in found["row"]
    assert (found["verdict"], found.recorded) == ("no event: the row cannot be converted", False)


async def test_text_that_is_not_utf_8_is_a_row_fault(sqlite_application: Application, tmp_path: Path) -> None:
    sqlite_application.migrate()
    sqlite_application.execute("insert into tags values ('t1', cast(x'ff' as text), 'red')")
    found = await explain(configure(sqlite_application, tmp_path), "tag", "t1")
    assert "tags t1: name is not UTF-8 text" in found["row"]


async def test_row_excluded_by_where_counts_as_deleted(any_application: Application, tmp_path: Path) -> None:
    more = "[database.tables.tags]\nwhere = \"name <> 'flag'\"\n"
    any_application.migrate()
    any_application.tag()
    found = await explain(configure(any_application, tmp_path, more), "tag", "t1")
    assert "excluded by database.tables.tags.where: it counts as deleted" in found["row"]
    assert found["verdict"] == "no event: the row is excluded by `where`, and deletes are not recorded"
    assert not found.recorded


async def test_metadata_outside_where_is_excluded(any_application: Application, tmp_path: Path) -> None:
    more = "[database.tables.metadata]\nwhere = \"value <> 'hidden'\"\n"
    any_application.migrate(more)
    any_application.metadata("conversation", "c1", "note", "hidden")
    any_application.execute(f"delete from {any_application.log_table('change_log')}")
    config = configure(any_application, tmp_path, more)
    found = await explain(config, "metadata", "conversation:c1")
    assert "excluded by database.tables.metadata.where: it counts as deleted" in found["row"]
    assert (found["verdict"], found.recorded) == ("no event is retained: the row is excluded by `where`", False)
    never = await explain(config, "metadata", "conversation:c2")
    assert never["verdict"] == "this object is unknown: no row, no change, no event"


async def test_row_that_leaves_where_is_excluded(any_application: Application, tmp_path: Path) -> None:
    more = "[database.tables.tags]\nwhere = \"name <> 'hidden'\"\n"
    any_application.migrate(more)
    await record(any_application, more, INSERT_TAG)
    any_application.execute("update tags set name = 'hidden'")
    await record(any_application, more, INSERT_ANOTHER)
    found = await explain(configure(any_application, tmp_path, more), "tag", "t1")
    assert found["verdict"] == "no event: the row is excluded by `where`, and deletes are not recorded"
    assert not found.recorded


async def test_deleted_row_without_deletes_is_not_recorded(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    await record(any_application, "", INSERT_TAG)
    any_application.execute("delete from tags")
    await record(any_application, "", INSERT_ANOTHER)
    config = configure(any_application, tmp_path)
    found = await explain(config, "tag", "t1")
    assert found["verdict"] == "no event: the row is absent, and deletes are not recorded"
    assert (await run("explain", "--config", str(config), "tag", "t1")).code == 1


async def test_recorded_delete_is_the_current_state(any_application: Application, tmp_path: Path) -> None:
    more = "[events]\ndeletes = true\n"
    any_application.migrate(more)
    deletions = "delete from tags", "delete from channels"
    await record(any_application, more, INSERT_TAG, INSERT_CHANNEL, *deletions)
    config = configure(any_application, tmp_path, more)
    found = await explain(config, "tag", "t1")
    assert (found["verdict"], found.recorded) == ("recorded: tag.deleted is in the event log", True)
    found = await explain(config, "channel", "ch1")
    assert (found["verdict"], found.recorded) == ("recorded: channel.updated is in the event log", True)


async def test_write_that_fires_no_trigger_is_not_recorded(postgres_application: Application, tmp_path: Path) -> None:
    postgres_application.migrate()
    await record(postgres_application, "", INSERT_TAG)
    postgres_application.execute("set local session_replication_role = replica", "update tags set name = 'other'")
    found = await explain(configure(postgres_application, tmp_path), "tag", "t1")
    assert found["verdict"] == "not recorded: tag.updated is in the event log, but is not the current state"
    assert not found.recorded


async def test_the_current_state_of_an_object_is_reported(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    await record(any_application, "", INSERT_TAG)
    config = configure(any_application, tmp_path)
    state = (await explain(config, "tag", "t1"))["state"]
    assert re.fullmatch(r"not known: a server still has to add the event at [a-z0-9]{6}-1", state)
    missing = "replay:current does not have it"
    assert (await explain(config, "tag", "t2"))[
        "state"
    ] == f"{missing}, and not all of tag.updated: run airy-trio backfill"
    assert (await explain(config, "message", "m1"))["state"] == (
        "replay:current has it in the recent window only: message.updated is not in log.keep_current"
    )
    async with serving(any_application, free_port()):
        assert (await run("backfill", "tags", "--config", str(config))).code == 0
        while "no such row" not in (await explain(config, "tag", "t2"))["state"]:  # noqa: ASYNC110 - another process
            await trio.sleep(0.05)
    state = (await explain(config, "tag", "t1"))["state"]
    assert re.fullmatch(r"replay:current has it, with the event at [a-z0-9]{6}-\d+", state)


async def test_missing_triggers_are_reported(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    any_application.execute("drop table tags", "create table tags (id text primary key, name text, color text)")
    any_application.tag()
    found = await explain(configure(any_application, tmp_path), "tag", "t1")
    assert 'table "tags" (tags) has no trigger ' in found["triggers"]
    assert found["verdict"].startswith("no event: changes of this table are not captured; run: airy-trio migrate")


async def test_missing_truncate_trigger_for_the_state_is_reported(
    postgres_application: Application, tmp_path: Path
) -> None:
    more = '[log]\nkeep_current = ["message.updated"]\n'
    postgres_application.migrate(more)
    postgres_application.execute("drop trigger airy_trio_messages_truncate on messages")
    found = await explain(configure(postgres_application, tmp_path, more), "message", "m1")
    assert found["triggers"].startswith('table "messages" (messages) has no trigger airy_trio_messages_truncate; run: ')


async def test_metadata_is_found_by_subject_and_identifier(any_application: Application, tmp_path: Path) -> None:
    any_application.migrate()
    any_application.metadata("conversation", "a:b", "contact.displayName", "Grace")
    config = configure(any_application, tmp_path)
    found = await explain(config, "metadata", "conversation:a:b")
    assert found["row"] == 'there is one in table "metadata", which can become an event'
    assert found["change"].startswith("written ")
    assert (await explain(config, "metadata", "message:a:b"))["row"] == 'there is none in table "metadata"'


async def test_metadata_with_a_constant_subject_is_found(any_application: Application, tmp_path: Path) -> None:
    any_application.execute("create table metadata (identifier integer, key text, value text)")
    more = only(metadata='constants = { subject = "conversation", value_type = "text" }')
    any_application.migrate(more, with_tables=False)
    any_application.execute("insert into metadata values (17, 'plan', 'pro')")
    config = configure(any_application, tmp_path, more)
    found = await explain(config, "metadata", "conversation:17")
    assert found["row"] == 'there is one in table "metadata", which can become an event'
    assert found["change"].startswith("written ")
    other = await explain(config, "metadata", "message:17")
    assert other["row"] == 'none: database.tables.metadata.constants.subject is "conversation"'
    assert other["verdict"] == "this object is unknown: no row, no change, no event"


async def test_missing_installation_and_unmapped_table_are_reported(
    sqlite_application: Application, tmp_path: Path
) -> None:
    sqlite_application.execute("create table tags (id text, name text, color text)")
    others = only(tags="")
    config = configure(sqlite_application, tmp_path, others)
    assert "has not been installed here" in (await explain(config, "tag", "t1"))["change"]
    assert 'database.tables.messages.name is ""' in (await explain(config, "message", "m1"))["row"]


async def test_change_is_unknown_without_triggers(sqlite_application: Application, tmp_path: Path) -> None:
    sqlite_application.execute("create table tags (id text, name text, color text, updated_at text)")
    sqlite_application.execute("insert into tags values ('t1', 'flag', 'red', '2026-01-01T00:00:00Z')")
    others = only(tags="")
    more = f'{others}[changes]\ncapture = "updated_at"\n[log]\nurl = "sqlite:///{tmp_path}/log.db"\n'
    sqlite_application.migrate(more, with_tables=False)
    found = await explain(configure(sqlite_application, tmp_path, more), "tag", "t1")
    assert found["row"] == 'there is one in table "tags", which can become an event'
    assert found["state"].endswith('not all of tag.updated: with changes.capture "updated_at" there is no backfill')
    assert found["change"] == 'not known: changes.capture is "updated_at", which keeps no change log'
    assert found["recorder"] == ""


@pytest.mark.parametrize(
    "change, verdict",
    [
        ("update tags set color = color", "recorded: tag.updated is in the event log"),
        (
            "update tags set name = 'other'",
            "not recorded: tag.updated is in the event log, but is not the current state",
        ),
        ("delete from tags", "no event: the row is absent, and deletes are not recorded"),
    ],
)
async def test_without_triggers_the_event_is_compared_with_the_row(
    any_application: Application, tmp_path: Path, change: str, verdict: str
) -> None:
    any_application.execute("create table tags (id text primary key, name text, color text, updated_at text)")
    others = only(tags="")
    more = f'{others}[changes]\ncapture = "updated_at"\n[log]\nurl = "sqlite:///{tmp_path}/log.db"\n'
    any_application.migrate(more, with_tables=False)
    await record(any_application, more, "insert into tags values ('t1', 'flag', 'red', '2026-01-01T00:00:00Z')")
    any_application.execute(change)
    found = await explain(configure(any_application, tmp_path, more), "tag", "t1")
    assert (found["verdict"], found.recorded) == (verdict, verdict.startswith("recorded"))


async def test_memory_store_leaves_only_the_event_unknown(sqlite_application: Application, tmp_path: Path) -> None:
    sqlite_application.migrate()
    sqlite_application.tag()
    found = await explain(configure(sqlite_application, tmp_path, '[log]\nstore = "memory"\n'), "tag", "t1")
    assert found["event"] == 'not known: the event store "memory" is inside the server process'
    assert found["row"].startswith("there is one")
    assert found["change"].endswith(" by the trigger's clock, not known whether it is recorded")
    assert (found["verdict"], found.recorded) == ("not known: the event log cannot be read", False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["metadata", "17"], "'17' lacks its subject: conversation:ID, channel:ID or message:ID"),
        (["note", "17"], "'note' is not one of 'message', 'metadata', 'channel', 'tag'."),
        (["tag"], "Missing argument 'ID'."),
    ],
)
async def test_wrong_arguments(arguments: list[str], message: str, tmp_path: Path) -> None:
    config = tmp_path / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "sqlite:///{tmp_path}/app.db"\n')
    ended = await run("explain", "--config", str(config), *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
async def test_clients_of_all_workers_and_missing_workers_are_reported(
    sqlite_application: Application, tmp_path: Path
) -> None:
    sqlite_application.migrate()
    port = free_ports(5)
    config = configure(sqlite_application, tmp_path, "[log]\nretain_s = 3600\n", port=port)
    config.write_text(config.read_text().replace("[listener]\n", "[listener]\nworkers = 2\n"))
    with trio.fail_after(2 * TIMEOUT_S):
        async with running(Server, [*AIRY_TRIO, "--config", str(config)]) as server, AsyncExitStack() as stack:
            number: int = (await server.record("all workers listen"))["port"]
            clients = [await stack.enter_async_context(await connect(HOST, number)) for _ in range(CLIENTS)]
            for one in clients:
                await one.subscribe("/events")
            sqlite_application.tag()
            for one in clients:
                await one.receive()
            found = await explain(config, "tag", "t1")
            assert found["clients"].startswith(f"{CLIENTS} connected: {CLIENTS} are past it, 0 are not yet, ")
            assert found[""].count("session ") == CLIENTS
            assert found["server"] == ""
            assert 0 < len(await sessions_at(port)) < CLIENTS, "the clients are spread over both workers"

            config.write_text(config.read_text().replace("workers = 2\n", "workers = 4\n"))
            found = await explain(config, "tag", "t1")
    assert found["clients"].startswith(f"{CLIENTS} connected to the 3 of 4 workers that answer: {CLIENTS} are past")
    for name, number in (("worker 3", port + 3), ("recorder", port + 4)):
        assert f"{name}: no server answers at the admin port {HOST}:{number}; it is not running here" in found["server"]
    assert "worker 2" not in found["server"], "its port is that of the running server's recorder"


async def sessions_at(port: int) -> list[object]:
    """Return the sessions of the worker with this admin port."""
    answer = await Port(port).get("/api/clients?position=aaaaaa-1&type=tag.updated")
    found: list[object] = answer.json()["sessions"]
    return found


async def test_another_program_at_the_admin_port_is_reported(sqlite_application: Application, tmp_path: Path) -> None:
    sqlite_application.migrate()
    sqlite_application.tag()
    async with serving(sqlite_application, free_port()) as (address, _), await client(address, "/events") as one:
        await one.receive()

    def answer(_request: PageRequest) -> Answer:
        return Answer(HTTPStatus.NOT_FOUND, b'{"error": "no such page"}', {"content-type": "application/json"})

    async with serving_alone(Pages({}, answer)) as other:
        found = await explain(configure(sqlite_application, tmp_path, port=other.number), "tag", "t1")
    assert found["clients"] == "not known"
    assert found["server"] == f"another program answers at the admin port {HOST}:{other.number}"


async def test_clients_page_rejects_a_foreign_host_name(any_application: Application) -> None:
    any_application.migrate()
    async with serving(any_application, free_port()) as (_, port):
        path = "/api/clients?position=aaaaaa-1&type=tag.updated"
        assert (await port.get(path)).json()["clients"] == 0
        assert (await port.get(path, host="evil.example:8081")).status_code == 403
        assert (await port.get(path, host="localhost:8081")).status_code == 200
        assert (await port.get("/api/clients?position=x")).status_code == 400
