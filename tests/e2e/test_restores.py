"""A database that was restored to an older state begins a new epoch, so that no position ever names two events."""

import itertools
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from psycopg import sql

from airy_trio.database import sqlite_path
from airy_trio.testing.client import Closed, connect
from tests.application import Application, application
from tests.capture.test_postgres import copy_folder
from tests.e2e.route import HOST, Event, assert_in_order, configure, listening
from tests.postgres import SUPERUSER, Postgres
from tests.processes import Server, json_object, server
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 50.0
MANY = 40


class Dump:
    """A dump of a database of the tests' Postgres. Skips the test if the programs are missing."""

    def __init__(self, postgres: Postgres, application: Application, path: Path) -> None:
        self._postgres = postgres
        self._application = application
        self._path = path
        self._name = sa.make_url(application.url).database or ""
        for program in ("pg_dump", "psql"):
            if not (postgres.binaries.folder / program).exists():
                pytest.skip(f"no {program} next to this Postgres")
        self._run("pg_dump", "--file", path)

    def restore(self, *, new_database: bool) -> None:
        """Restore the dump into a new database, or in one transaction into the existing, emptied database."""
        if new_database:
            self._application.engine.dispose()
            self._postgres.drop_database(self._name)
            self._postgres.create_database(name=self._name)
            self._run("psql", "--file", self._path)
            return
        emptied = self._path.with_name("emptied.sql")
        emptied.write_text(
            "set client_min_messages = warning;\ndrop schema airy_trio, public cascade; create schema public;\n"
            + self._path.read_text()
        )
        self._run("psql", "--single-transaction", "--file", emptied)

    def _run(self, program: str, *arguments: str | Path) -> None:
        where = ["--host", HOST, "--port", str(self._postgres.port), "--username", SUPERUSER, "--dbname", self._name]
        quiet = ["--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1"] if program == "psql" else []
        subprocess.run([self._postgres.binaries.folder / program, *where, *quiet, *arguments], check=True)


async def assert_another_epoch(serving: Server, application: Application, seen: list[Event]) -> None:
    """Assert that a client with an earlier position gets ``reset-epoch``, and that new events have new positions."""
    await until_new_epoch_is_logged(serving)
    for event in seen:
        while (resume := await resumed(serving, event)) == "resumed":
            pass
        assert resume == "reset-epoch"
    application.tag("new")
    async with listening(serving, headers=[("replay", "all")]) as ours:
        received = await ours.upto(lambda event: event.object == ("tag", "new"))
    assert_in_order(received)
    assert received[0].epoch != seen[0].epoch


async def resumed(serving: Server, event: Event) -> str | None:
    """Resume after an event, and return the header ``resume`` of the receipt.

    A recorder logs the new epoch before its server switches to it. A client that resumes in between is disconnected.
    """
    async with await connect(HOST, serving.port) as returning:
        receipt = await returning.subscribe(headers=[("last-event-id", event.position)])
        if receipt.get("resume") == "resumed":
            with pytest.raises(Closed) as closed:  # noqa: PT012 - events of the old epoch may precede the Close
                while True:
                    await returning.receive()
            assert closed.value.code == 4410, "410-position-expired"
        return receipt.get("resume")


async def until_new_epoch_is_logged(serving: Server) -> None:
    """Wait until the server logs a new epoch. Either the recorder or the log may notice the restore first."""
    for number in itertools.count():
        line = await serving.err.line(number)
        assert line is not None, serving.err.all
        if json_object(line).get("event", "").startswith("new epoch"):
            return


@pytest.mark.slow
@pytest.mark.parametrize("new_database", [True, False], ids=["a new database", "the same database"])
@pytest.mark.parametrize("log", ["in the database", "elsewhere"])
async def test_restored_dump_begins_an_epoch(
    log: str, postgres: Postgres, postgres_application: Application, tmp_path: Path, *, new_database: bool
) -> None:
    """In the same cluster, where transaction numbers continue, only the database's identity shows the restore."""
    more = f'[log]\nurl = "sqlite:///{tmp_path}/events.db"\n' if log == "elsewhere" else ""
    config = configure(postgres_application, tmp_path, more)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            postgres_application.tag("kept")
            await ours.take(1)
            dump = await trio.to_thread.run_sync(Dump, postgres, postgres_application, tmp_path / "dump.sql")
            postgres_application.tag("lost")
            await ours.take(1)
            assert await serving.terminate() == 0
        await trio.to_thread.run_sync(lambda: dump.restore(new_database=new_database))
        postgres_application.engine.dispose()
        postgres_application.tag("before the start")
        async with server(config) as serving:
            await assert_another_epoch(serving, postgres_application, ours.events)
            assert await serving.terminate() == 0


@pytest.mark.slow
async def test_dump_restored_under_a_running_server_begins_an_epoch(
    postgres: Postgres, postgres_application: Application, tmp_path: Path
) -> None:
    """In one transaction, so that the server never finds a database without our tables."""
    config = configure(postgres_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            postgres_application.tag("kept")
            await ours.take(1)
            dump = await trio.to_thread.run_sync(Dump, postgres, postgres_application, tmp_path / "dump.sql")
            postgres_application.tag("lost")
            await ours.take(1)
            await trio.to_thread.run_sync(lambda: dump.restore(new_database=False))
            postgres_application.engine.dispose()
            await assert_another_epoch(serving, postgres_application, ours.events)
            assert await serving.terminate() == 0


async def test_restored_copy_of_everything_needs_the_documented_statement(
    postgres_application: Application, tmp_path: Path
) -> None:
    """Nothing in the copy shows that it is older; the statement of docs/how-to/operate.md does."""
    statement = "update airy_trio.change_state set consumer_epoch = 'restored'"
    assert statement in (ROOT / "docs/how-to/operate.md").read_text()
    config = configure(postgres_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            postgres_application.tag("kept")
            await ours.take(1)
            assert await serving.terminate() == 0
        postgres_application.execute(statement)
        async with server(config) as serving:
            await assert_another_epoch(serving, postgres_application, ours.events)
            assert await serving.terminate() == 0


@pytest.mark.parametrize("running", [False, True])
async def test_restored_sqlite_file_begins_an_epoch(
    sqlite_application: Application, tmp_path: Path, *, running: bool
) -> None:
    config, path = configure(sqlite_application, tmp_path), sqlite_path(sqlite_application.url)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            sqlite_application.tag("kept")
            await ours.take(1)
            copy(path, tmp_path / "copy.db")
            sqlite_application.tag("lost")
            await ours.take(1)
            if running:
                copy(tmp_path / "copy.db", path)
                await assert_another_epoch(serving, sqlite_application, ours.events)
            assert await serving.terminate() == 0
        if not running:
            copy(tmp_path / "copy.db", path)
            sqlite_application.tag("before the start")
            async with server(config) as serving:
                await assert_another_epoch(serving, sqlite_application, ours.events)
                assert await serving.terminate() == 0


def copy(source: Path, target: Path) -> None:
    """Copy a file, as SQLite's ``.backup`` and ``.restore`` do."""
    with closing(sqlite3.connect(source)) as from_, closing(sqlite3.connect(target)) as into:
        from_.backup(into)


@pytest.fixture
def own_application(own_postgres: Postgres) -> Iterator[Application]:
    """An application in a cluster that the test may stop, crash and restore."""
    with application(own_postgres.url(own_postgres.create_database())) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("log", ["a file", "another Postgres"])
async def test_restored_data_folder_with_a_separate_log_begins_an_epoch(
    own_application: Application, own_postgres: Postgres, tmp_path: Path, request: pytest.FixtureRequest, log: str
) -> None:
    """The application continues to write, so that its transaction numbers do not show the restore."""
    url = f"sqlite:///{tmp_path}/events.db" if log == "a file" else request.getfixturevalue("postgres_database")
    config = configure(own_application, tmp_path, f'[log]\nurl = "{url}"\n')
    data, saved = own_postgres.folder / "data", own_postgres.folder / "saved"
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            own_application.tag("kept")
            await ours.take(1)
            assert await serving.terminate() == 0
        await restarted(own_application, own_postgres, lambda: copy_folder(data, saved))
        async with server(config) as serving, listening(serving, after=ours.events[-1].position) as later:
            own_application.tag("lost")
            await later.take(1)
            assert await serving.terminate() == 0
        await restarted(own_application, own_postgres, lambda: put_back(saved, data))
        for number in range(MANY):
            own_application.tag(f"t{number}")
        async with server(config) as serving:
            await assert_another_epoch(serving, own_application, ours.events + later.events)
            assert await serving.terminate() == 0


@pytest.mark.slow
async def test_crash_loses_no_commit_that_clients_received(
    own_application: Application, own_postgres: Postgres, tmp_path: Path
) -> None:
    """The application commits asynchronously; even so, the epoch continues."""
    own_postgres.execute(sql.SQL("alter system set synchronous_commit = off"))
    own_postgres.execute(sql.SQL("alter system set wal_writer_delay = '10s'"))
    await restarted(own_application, own_postgres, lambda: None)
    config = configure(own_application, tmp_path, f'[log]\nurl = "sqlite:///{tmp_path}/events.db"\n')
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            for number in range(MANY // 2):
                own_application.tag(f"seen{number}")
                await ours.take(1)
            await serving.kill()
        own_application.engine.dispose()
        await trio.to_thread.run_sync(own_postgres.crash)
        await trio.to_thread.run_sync(own_postgres.start)
        assert own_application.scalar("select count(*) from tags where id like 'seen%'") == len(ours.events)
        for number in range(MANY):
            own_application.tag(f"t{number}")
        async with server(config) as serving, listening(serving, after=ours.events[-1].position) as returning:
            assert returning.receipt.get("resume") != "reset-epoch"
            received = await returning.upto(lambda event: event.object == ("tag", f"t{MANY - 1}"))
            assert {event.object for event in received} == {("tag", f"t{number}") for number in range(MANY)}
            assert_in_order(ours.events + received)
            assert await serving.terminate() == 0


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 3])
async def test_redis_that_lost_its_end_begins_an_epoch(
    any_application: Application, own_redis: RedisServer, tmp_path: Path, lost: int
) -> None:
    """Redis lost only the last append, which was settled, and all servers have ended too."""
    config = configure(any_application, tmp_path, f'[log]\nstore = "redis"\nurl = "{own_redis.url}"\n')
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            any_application.tag("kept")
            await ours.take(1)
            own_redis.copy(tmp_path / "copy")
            for number in range(lost):
                any_application.tag(f"lost{number}")
                await ours.take(1)
            await settled(any_application)
            await serving.kill()
        own_redis.kill()
        own_redis.put_back(tmp_path / "copy")
        await trio.to_thread.run_sync(own_redis.start)
        any_application.tag("before the start")
        async with server(config) as serving:
            await assert_another_epoch(serving, any_application, ours.events)
            assert await serving.terminate() == 0


@pytest.mark.slow
async def test_power_failure_of_postgres_and_redis_begins_an_epoch(
    own_application: Application, own_postgres: Postgres, own_redis: RedisServer, tmp_path: Path
) -> None:
    """Redis loses the last append; Postgres still knows of it, although the WAL writer has not run since."""
    own_postgres.execute(sql.SQL("alter system set wal_writer_delay = '10s'"))
    await restarted(own_application, own_postgres, lambda: None)
    config = configure(own_application, tmp_path, f'[log]\nstore = "redis"\nurl = "{own_redis.url}"\n')
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            own_application.tag("kept")
            await ours.take(1)
            await settled(own_application)
            own_redis.copy(tmp_path / "copy")
            own_application.tag("lost")
            await ours.take(1)
            await settled(own_application)
            own_application.engine.dispose()
            await trio.to_thread.run_sync(own_postgres.crash)
            await serving.kill()
        own_redis.kill()
        own_redis.put_back(tmp_path / "copy")
        await trio.to_thread.run_sync(own_redis.start)
        await trio.to_thread.run_sync(own_postgres.start)
        own_application.tag("before the start")
        async with server(config) as serving:
            await assert_another_epoch(serving, own_application, ours.events)
            assert await serving.terminate() == 0


def put_back(saved: Path, data: Path) -> None:
    shutil.rmtree(data)
    saved.rename(data)


async def settled(application: Application) -> None:
    """Wait until the database knows that the last append has happened."""
    state = application.log_table("change_state")
    while application.scalar(f"select count(*) from {state} where mark = replaced_mark and mark <> ''") != 1:  # noqa: ASYNC110 - the server does not report it; a name of ours
        await trio.sleep(0.01)


async def restarted(application: Application, postgres: Postgres, meanwhile: Callable[[], object]) -> None:
    """Stop Postgres, do something to its files, and start it."""
    application.engine.dispose()

    def work() -> None:
        postgres.stop()
        meanwhile()
        postgres.start()

    await trio.to_thread.run_sync(work)


@pytest.mark.slow
async def test_dump_of_data_from_an_older_cluster_is_sent_once(
    postgres: Postgres, postgres_application: Application, own_application: Application, tmp_path: Path
) -> None:
    """It has unread changes, whose transaction numbers are in the future of the cluster into which it is loaded."""
    name, older = sa.make_url(own_application.url).database, sa.make_url(postgres_application.url).database
    postgres_application.migrate()
    burn = "do $$ begin for i in 1..5000 loop perform pg_current_xact_id(); commit; end loop; end $$"
    with postgres_application.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(burn)
    for number in range(3):
        postgres_application.tag(f"waiting{number}")
    config = configure(own_application, tmp_path)

    def load() -> None:
        where = ["--host", HOST, "--username", SUPERUSER]
        dumped: list[str | Path] = ["--data-only", "--table", "airy_trio.change_log", "--file", tmp_path / "dump.sql"]
        programs = postgres.binaries.folder
        subprocess.run([programs / "pg_dump", *where, "--port", str(postgres.port), *dumped, str(older)], check=True)
        own = ["--port", str(sa.make_url(own_application.url).port), "--quiet", "--set", "ON_ERROR_STOP=1"]
        subprocess.run([programs / "psql", *where, *own, "--file", tmp_path / "dump.sql", str(name)], check=True)

    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving:
            await trio.to_thread.run_sync(load)
            emptied = await serving.record("change log emptied; changes that were not recorded are not sent")
            assert emptied["rows"] == 3
            await until_new_epoch_is_logged(serving)
            assert own_application.scalar("select count(*) from airy_trio.change_log") == 0
            async with listening(serving, headers=[("replay", "all")]) as ours:
                own_application.tag("new")
                assert [event.object for event in await ours.take(1)] == [("tag", "new")]
            assert await serving.terminate() == 0
