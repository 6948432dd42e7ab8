"""``serve`` as a task in the nursery of a program: start, shutdown and errors."""

import socket
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import sqlalchemy as sa
import trio
from structlog.testing import capture_logs

from airy_trio import app
from airy_trio.admin.readiness import Starting
from airy_trio.app.build import open_back_ends, opened_store
from airy_trio.app.server import serve_process
from airy_trio.errors import MappingError, SettingsError, StartError
from airy_trio.migrate import migrate
from airy_trio.testing.client import Closed, StompClient, connect
from tests.admin.serving import admin, free_port, serving_all
from tests.application import Application
from tests.capture.watched import ONLY_TAGS, Watched

TIMEOUT_S = 20.0
LISTENER = "[listener]\nport = 0\n"


async def client_of(address: app.Address) -> StompClient:
    client = await connect(address.host, address.port, address.path)
    assert (await client.subscribe()).command == "RECEIPT"
    return client


async def test_serves_in_a_nursery_and_shuts_down_gracefully(any_application: Application) -> None:
    settings = any_application.migrate(LISTENER)
    stopping = trio.Event()
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            address: app.Address = await nursery.start(partial(app.serve, settings, stopping=stopping))
            assert address.url == f"ws://127.0.0.1:{address.port}/ws.communication"
            async with await client_of(address) as client:
                any_application.tag()
                assert (await client.receive()).body == (
                    b'{"type":"tag.updated","payload":{"id":"t1","name":"flag","color":"tag-red"}}'
                )
                stopping.set()
                assert (await client.receive()).get("message") == "503-shutting-down"
                with pytest.raises(Closed, match="1012"):
                    await client.receive()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(address.host, address.port)


async def test_servers_with_different_schemas_both_record(any_application: Application) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            clients = []
            for schema in ("airy_trio", "other"):
                settings = any_application.run_migration(f'schema = "{schema}"\n{LISTENER}')
                client = await client_of(await nursery.start(app.serve, settings))
                clients.append(await stack.enter_async_context(client))
            any_application.tag()
            assert [(await client.receive()).command for client in clients] == ["MESSAGE"] * 2
            nursery.cancel_scope.cancel()


async def test_servers_of_all_schemas_share_the_lease_of_a_log_in_redis(sqlite_application: Application) -> None:
    """Only a log in SQL has tables for each schema."""
    Watched(sqlite_application)
    acquired = []
    with trio.fail_after(TIMEOUT_S):
        async with AsyncExitStack() as stack:
            for schema in ("airy_trio", "other"):
                settings = sqlite_application.settings(
                    f'schema = "{schema}"\n{ONLY_TAGS}[changes]\ncapture = "updated_at"\n'
                    '[log]\nstore = "redis"\nurl = "redis://127.0.0.1:1"\n'
                )
                back_ends = await stack.enter_async_context(open_back_ends(settings, Starting(), lambda: "epoch1"))
                acquired.append(await back_ends.lease.try_acquire())
    assert acquired == [True, False]


@pytest.mark.parametrize("kind", ["metadata", "messages"])
async def test_state_of_a_former_mapping_ends_at_the_start(any_application: Application, kind: str) -> None:
    """Nothing has to change for that. Messages are not kept, but metadata is sent to the channels of messages."""
    any_application.migrate()
    any_application.execute("insert into metadata values ('message', 'm1', 'a', 'b', 'text', null)")
    found = []
    for changed in ("", "", f"[database.tables.{kind}]\nwhere = '1 = 1'\n"):
        more = f'{changed}{LISTENER}[log]\nkeep_current = ["metadata.updated"]\n'
        settings = any_application.settings(more)
        with trio.fail_after(TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(app.serve, settings)
                nursery.cancel_scope.cancel()
            async with opened_store(settings) as store:
                found.append((await store.bounds()).state)
    first, same, other = (None if state is None else state.generation for state in found)
    assert None not in {first, same, other}
    assert first == same != other


async def test_cancelling_ends_at_once_and_releases_everything(any_application: Application) -> None:
    settings = any_application.migrate(f'{LISTENER}[log]\nstore = "memory"\n')
    with trio.fail_after(TIMEOUT_S):
        for _ in range(2):  # the second one takes over the lease and the change log
            async with trio.open_nursery() as nursery:
                address: app.Address = await nursery.start(app.serve, settings)
                async with await client_of(address) as client:
                    nursery.cancel_scope.cancel()
                    with trio.CancelScope(shield=True), pytest.raises(Closed):
                        await client.receive()


async def test_shutdown_closes_connections_that_do_not_answer(
    postgres_application: Application, postgres_database: str
) -> None:
    """The recorder waits for a lock, and the pools have connections that are idle."""
    settings = postgres_application.migrate(LISTENER)
    ours = "select pid from pg_stat_activity where application_name = 'airy-trio' and datname = current_database()"
    postgres_application.engine.dispose()
    engine = sa.create_engine(postgres_database, poolclass=sa.NullPool)
    looking = engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as other, looking.connect() as look, trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(app.serve, settings)
            other.exec_driver_sql(f"lock table {postgres_application.log_table('change_log')}")
            while not look.exec_driver_sql(f"{ours} and wait_event_type = 'Lock'").first():  # noqa: ASYNC110 - polled
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        while look.exec_driver_sql(ours).first():  # noqa: ASYNC110 - a backend notices it in its own time
            await trio.sleep(0.01)


async def test_two_servers_on_one_database_send_the_same_positions(any_application: Application) -> None:
    settings = any_application.migrate(LISTENER)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            addresses: list[app.Address] = [await nursery.start(app.serve, settings) for _ in range(2)]
            async with await client_of(addresses[0]) as one, await client_of(addresses[1]) as other:
                any_application.tag()
                any_application.message()
                assert [await one.receive() for _ in range(2)] == [await other.receive() for _ in range(2)]
            nursery.cancel_scope.cancel()


async def test_start_error_is_plain(sqlite_application: Application) -> None:
    settings = sqlite_application.settings(LISTENER)
    sqlite_application.execute("create table unrelated (id text)")
    with pytest.raises(MappingError) as awaited:
        await app.serve(settings)
    assert len(awaited.value.faults) == 4
    async with trio.open_nursery() as nursery:
        with pytest.raises(MappingError):
            await nursery.start(app.serve, settings)
    with pytest.raises(MappingError):
        await app.run(settings)


async def test_warnings_about_settings_are_logged_at_the_start(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(f'{LISTENER}[auth]\nmode = "tokens"\ntokens = {{ a = "1" }}\n')
    with trio.fail_after(TIMEOUT_S), capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(app.serve, settings)
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in logs if "tokens" in line["event"]] == list(settings.exposures()) != []


async def test_only_the_command_starts_workers(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(f"{LISTENER}workers = 2\n")
    for serving in (app.serve, app.run):
        with pytest.raises(SettingsError, match=r"listener\.workers is 2, but serve\(\) is one process"):
            await serving(settings)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_process, settings, worker=1))
            nursery.cancel_scope.cancel()


async def test_start_error_once_tasks_run_is_plain(any_application: Application) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        settings = any_application.migrate(f"[listener]\nport = {taken.getsockname()[1]}\n")
        for serving in (app.serve, app.run):
            with pytest.raises(StartError, match="cannot listen on"):
                await serving(settings)


async def test_dropped_change_log_ends_the_server(any_application: Application) -> None:
    settings = any_application.migrate(LISTENER)
    removed = pytest.RaisesExc(StartError, match="^the tables of airy_trio were removed while this server ran")
    with trio.fail_after(TIMEOUT_S), pytest.RaisesGroup(removed):  # the group is of this nursery
        async with trio.open_nursery() as nursery:
            await nursery.start(app.serve, settings)
            drop = f"drop table {any_application.log_table('change_log')}"
            await trio.to_thread.run_sync(any_application.execute, drop)  # which waits for a read that has begun
            await trio.sleep_forever()


async def test_renamed_column_interrupts_recording_only(any_application: Application) -> None:
    settings = any_application.migrate(admin(free_port()))
    with trio.fail_after(TIMEOUT_S):
        async with serving_all(settings) as (address, port), await client_of(address) as client:
            any_application.execute("alter table tags rename column color to colour")
            any_application.execute("insert into tags (id, name, colour) values ('t1', 'flag', 'tag-red')")
            await port.until_not_ready("feed", 'database.tables.tags: the table "tags" is without its columns color')
            any_application.execute("alter table tags rename column colour to color")
            assert b'"id":"t1"' in (await client.receive()).body
            await port.until_ready()


async def test_server_with_new_mapping_records_after_a_rename(any_application: Application) -> None:
    settings = any_application.migrate(LISTENER)
    mapped = any_application.settings(f'[database.tables.tags.columns]\ncolor = "colour"\n{LISTENER}')
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            address: app.Address = await nursery.start(app.serve, settings)
            async with await client_of(address) as client:
                any_application.execute("alter table tags rename column color to colour")
                await trio.to_thread.run_sync(migrate, mapped)
                await nursery.start(app.serve, mapped)
                any_application.execute("insert into tags (id, name, colour) values ('t1', 'flag', 'tag-red')")
                assert b'"id":"t1"' in (await client.receive()).body
            nursery.cancel_scope.cancel()


async def test_migrates_at_start_if_set(sqlite_application: Application) -> None:
    sqlite_application.migrate()
    sqlite_application.execute(
        "drop table tags", "create table tags (id text primary key, name text not null, color text not null)"
    )
    settings = sqlite_application.settings(f"migrate = true\n{LISTENER}")
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            address: app.Address = await nursery.start(app.serve, settings)
            async with await client_of(address) as client:
                sqlite_application.tag()
                assert b'"id":"t1"' in (await client.receive()).body
            nursery.cancel_scope.cancel()


async def test_missing_log_file_is_created(sqlite_application: Application, tmp_path: Path) -> None:
    settings = sqlite_application.migrate(LISTENER)
    log = tmp_path / "app.db.airy-trio.db"
    log.unlink()
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(app.serve, settings)
            nursery.cancel_scope.cancel()
    assert log.stat().st_mode & 0o777 == 0o600


async def test_companion_ends_the_server(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(LISTENER)
    seen: list[app.Address] = []

    async def look(address: app.Address) -> None:
        async with await client_of(address):
            seen.append(address)

    with trio.fail_after(TIMEOUT_S):
        await app.run(settings, look)
    assert len(seen) == 1


async def test_exception_of_the_companion_is_raised(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate(LISTENER)

    async def fail(address: app.Address) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise LookupError(f"cannot show {address.path}")

    with trio.fail_after(TIMEOUT_S), pytest.RaisesGroup(LookupError, flatten_subgroups=True):
        await app.run(settings, fail)
