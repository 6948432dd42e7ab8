"""A database that went back to an older state: a new epoch, so that no position ever names two events."""

import itertools
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import sqlite_path
from airy_trio.testing.client import connect
from tests.application import Application
from tests.e2e.route import HOST, Event, assert_in_order, configure, listening
from tests.postgres import SUPERUSER, Postgres
from tests.processes import Server, json_object, server

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 50.0


class Dump:
    """A database of the tests' Postgres as ``pg_dump`` writes it. Skips the test where the programs are missing."""

    def __init__(self, postgres: Postgres, application: Application, path: Path) -> None:
        self._postgres = postgres
        self._application = application
        self._path = path
        self._name = sa.make_url(application.url).database or ""
        for program in ("pg_dump", "psql"):
            if not (postgres.binaries.folder / program).exists():
                pytest.skip(f"no {program} beside this Postgres")
        self._run("pg_dump", "--file", path)

    def restore(self, *, anew: bool) -> None:
        """Put it back: into a database made ``anew``, or in one transaction into the one that is there, emptied."""
        if anew:
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
    """Who comes with a position of before is told so, and what is written now is told under new ones."""
    await said_of_a_new_epoch(serving)
    for event in seen:
        async with await connect(HOST, serving.port) as returning:
            receipt = await returning.subscribe(headers=[("last-event-id", event.position)])
            assert receipt.get("resume") == "reset-epoch"
    application.tag("new")
    async with listening(serving, headers=[("replay", "all")]) as ours:
        told = await ours.upto(lambda event: event.object == ("tag", "new"))
    assert_in_order(told)
    assert told[0].epoch != seen[0].epoch


async def said_of_a_new_epoch(serving: Server) -> None:
    """Return once the server says that it began one; who notices first, the recorder or the log, is chance."""
    for number in itertools.count():
        line = await serving.err.line(number)
        assert line is not None, serving.err.all
        if json_object(line).get("event", "").startswith("new epoch"):
            return


@pytest.mark.slow
@pytest.mark.parametrize("anew", [True, False], ids=["a new database", "the same database"])
@pytest.mark.parametrize("log", ["beside", "elsewhere"])
async def test_a_dump_is_restored(
    log: str, postgres: Postgres, postgres_application: Application, tmp_path: Path, *, anew: bool
) -> None:
    """In the cluster that it is from, where transactions are numbered on: nothing but its place tells it apart."""
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
        await trio.to_thread.run_sync(lambda: dump.restore(anew=anew))
        postgres_application.engine.dispose()
        postgres_application.tag("before the start")
        async with server(config) as serving:
            await assert_another_epoch(serving, postgres_application, ours.events)
            assert await serving.terminate() == 0


@pytest.mark.slow
async def test_a_dump_is_restored_under_a_server(
    postgres: Postgres, postgres_application: Application, tmp_path: Path
) -> None:
    """In one transaction, so that the server never sees a database without our tables."""
    config = configure(postgres_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            postgres_application.tag("kept")
            await ours.take(1)
            dump = await trio.to_thread.run_sync(Dump, postgres, postgres_application, tmp_path / "dump.sql")
            postgres_application.tag("lost")
            await ours.take(1)
            await trio.to_thread.run_sync(lambda: dump.restore(anew=False))
            postgres_application.engine.dispose()
            await assert_another_epoch(serving, postgres_application, ours.events)
            assert await serving.terminate() == 0


async def test_a_copy_of_everything_is_put_back_by_hand(postgres_application: Application, tmp_path: Path) -> None:
    """Nothing in it tells that there was anything later; the statement of docs/how-to/operate.md does."""
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
async def test_an_older_copy_of_the_file_is_put_back(
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
    """As SQLite's ``.backup`` and ``.restore`` do."""
    with closing(sqlite3.connect(source)) as from_, closing(sqlite3.connect(target)) as into:
        from_.backup(into)
