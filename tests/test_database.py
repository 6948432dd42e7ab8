"""One hop, one transaction; errors in plain words; a session that knows when it is another one."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import trio

from airy_trio.database import (
    Database,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    Names,
    Session,
    postgres_engine,
    quote_identifier,
    quote_text,
    shown,
    sqlite_engine,
    sqlite_path,
    translated,
)
from tests.application import Application
from tests.postgres import Postgres


@pytest.fixture
def application(any_application: Application) -> Application:
    any_application.execute("select 1")  # makes the SQLite file
    return any_application


@pytest.fixture
def database(application: Application) -> Iterator[Database]:
    database = application.writing()
    yield database
    database.engine.dispose()


def run(database: Database, statement: str, parameters: dict[str, object] | None = None) -> Any:  # noqa: ANN401
    return database.run_sync(lambda connection: connection.execute(sa.text(statement), parameters or {}).scalar())


async def test_a_unit_of_work_commits_in_a_thread_of_its_own(application: Application, database: Database) -> None:
    def work(connection: sa.Connection) -> int:
        connection.exec_driver_sql("create table t (x int)")
        connection.exec_driver_sql("insert into t values (1)")
        return threading.get_ident()

    assert await database.write(work) != threading.get_ident()
    assert application.scalar("select count(*) from t") == 1


async def test_a_unit_that_fails_leaves_nothing_and_its_own_error_goes_through(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql("create table t (x int)")
        raise KeyError(1)

    for run_it in (database.run, database.write):
        with pytest.raises(KeyError):
            await run_it(work)
        with pytest.raises(DatabaseRefused):
            await run_it(lambda connection: connection.exec_driver_sql("select * from t").all())
    await database.aclose()


async def test_cancellation_is_heard_while_a_unit_is_under_way(application: Application, database: Database) -> None:
    session = application.reading()
    under_way, finish = threading.Event(), threading.Event()

    def work(_connection: sa.Connection) -> None:
        under_way.set()
        finish.wait(30)

    for run_it in (database.run, database.write, session.run):
        under_way.clear()
        with trio.fail_after(10), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_it, work)
                await trio.to_thread.run_sync(under_way.wait)
                scope.cancel()
    finish.set()
    assert await session.run(lambda connection: connection.exec_driver_sql("select 1").scalar()) == 1
    await session.aclose()


async def test_what_a_unit_holds_beyond_the_closing_is_closed_after_it(database: Database) -> None:
    under_way, finish, closed = threading.Event(), threading.Event(), threading.Event()
    sa.event.listen(database.engine, "close", lambda _connection, _record: closed.set())

    def work(_connection: sa.Connection) -> None:
        under_way.set()
        finish.wait(30)

    with trio.fail_after(10), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run, work)
            await trio.to_thread.run_sync(under_way.wait)
            scope.cancel()
    await database.aclose()
    assert not closed.is_set()
    finish.set()
    assert await trio.to_thread.run_sync(closed.wait, 10)


SECRET = "s3cret-value"  # noqa: S105 - what must not be told


@pytest.mark.parametrize(
    "statement",
    ["select * from nowhere where x = :p", "insert into t values (:p)", "select cast(:p as", "select nope(:p)"],
)
def test_an_answer_is_told_without_statement_and_parameters(
    application: Application, database: Database, statement: str
) -> None:
    application.execute("create table t (x text primary key)", "insert into t values ('x')")
    application.execute("insert into t values (:p)", p=SECRET)
    with pytest.raises(DatabaseRefused) as caught:
        run(database, statement, {"p": SECRET})
    assert SECRET not in str(caught.value)
    assert "SQL" not in str(caught.value).replace("SQLSTATE", "")
    assert caught.value.__cause__ is None
    assert (caught.value.sqlstate is None) == (application.dialect == "sqlite")


def test_a_mistake_of_ours_is_no_answer_of_the_database(database: Database) -> None:
    with pytest.raises(sa.exc.StatementError):
        run(database, "select :p")
    with pytest.raises(sa.exc.ObjectNotExecutableError):
        database.run_sync(lambda connection: connection.execute(7))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "code, kind",
    [
        (sqlite3.SQLITE_BUSY, DatabaseUnavailable),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, DatabaseUnavailable),
        (sqlite3.SQLITE_IOERR_SHORT_READ, DatabaseUnavailable),
        (sqlite3.SQLITE_FULL, DatabaseUnavailable),
        (sqlite3.SQLITE_CANTOPEN, DatabaseUnavailable),
        (sqlite3.SQLITE_READONLY_DBMOVED, DatabaseUnavailable),
        (sqlite3.SQLITE_READONLY, DatabaseRefused),
        (sqlite3.SQLITE_ERROR, DatabaseRefused),
        (sqlite3.SQLITE_CORRUPT, DatabaseRefused),
        (sqlite3.SQLITE_NOTADB, DatabaseRefused),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, DatabaseRefused),
    ],
)
def test_what_waiting_heals_on_sqlite(code: int, kind: type[DatabaseError]) -> None:
    error = sqlite3.OperationalError("said")
    error.sqlite_errorcode = code
    assert type(translated(error)) is kind
    assert type(translated(sa.exc.OperationalError("select 1", None, error))) is kind


@pytest.mark.parametrize(
    "error, kind",
    [
        (psycopg.OperationalError("away"), DatabaseUnavailable),
        (psycopg.errors.AdminShutdown("away"), DatabaseUnavailable),
        (psycopg.errors.SerializationFailure("again"), DatabaseUnavailable),
        (psycopg.errors.LockNotAvailable("later"), DatabaseUnavailable),
        (psycopg.errors.ReadOnlySqlTransaction("a standby"), DatabaseUnavailable),
        (psycopg.errors.UndefinedTable("none"), DatabaseRefused),
        (psycopg.errors.InsufficientPrivilege("no"), DatabaseRefused),
        (psycopg.errors.InvalidTextRepresentation("what"), DatabaseRefused),
    ],
)
def test_what_waiting_heals_on_postgres(error: psycopg.Error, kind: type[DatabaseError]) -> None:
    told = translated(error)
    assert type(told) is kind
    assert isinstance(told, DatabaseError)
    assert told.sqlstate == error.sqlstate


def test_a_database_that_is_away(postgres: Postgres, tmp_path: Path) -> None:
    wrong = postgres.password_url("postgres", "wr0ng")
    for url in (wrong, f"postgresql://u:{SECRET}@127.0.0.1:1/x", f"postgresql://u:{SECRET}@/x?host={tmp_path}"):
        with pytest.raises(DatabaseUnavailable) as caught:
            run(Database(postgres_engine(url, connect_timeout_s=2)), "select 1")
        assert not any(secret in str(caught.value) for secret in (SECRET, "wr0ng"))
    with pytest.raises(DatabaseUnavailable, match="unable to open database file"):
        run(Database(sqlite_engine(tmp_path / "none.db")), "select 1")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("this is no database, but a text that is longer than the header of one" * 9)
    with pytest.raises(DatabaseRefused, match="file is not a database"):
        run(Database(sqlite_engine(tmp_path / "text.db")), "select * from t")


def test_a_file_that_somebody_writes_to_is_busy(sqlite_application: Application) -> None:
    hasty = Database(sqlite_engine(sqlite_path(sqlite_application.url), busy_timeout_s=0))
    with sqlite_application.engine.begin() as connection:
        connection.exec_driver_sql("create table t (x)")
        with pytest.raises(DatabaseUnavailable, match="locked"):
            hasty.run_sync(lambda _connection: None, immediate=True)
    hasty.engine.dispose()


def test_a_connection_cut_in_the_middle_of_a_copy(postgres_application: Application) -> None:
    """The driver itself raises it, not SQLAlchemy."""
    postgres_application.execute("create table t (x text)")
    database = postgres_application.writing()

    def work(connection: sa.Connection) -> None:
        pid = connection.exec_driver_sql("select pg_backend_pid()").scalar()
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
            postgres_application.execute(f"select pg_terminate_backend({pid}, 5000)")
            for _ in range(10_000):
                copy.write_row(["x" * 1000])

    with pytest.raises(DatabaseUnavailable):
        database.run_sync(work)
    assert run(database, "select count(*) from t") == 0
    database.engine.dispose()


async def test_a_session_that_lost_its_connection_is_another_one(postgres_application: Application) -> None:
    session = postgres_application.reading()

    def pid(connection: sa.Connection) -> int:
        found: int = connection.exec_driver_sql("select pg_backend_pid()").scalar_one()
        return found

    first = await session.run(pid)
    generation = session.generation
    assert await session.run(pid) == first
    assert session.generation == generation
    postgres_application.execute(f"select pg_terminate_backend({first}, 5000)")
    with pytest.raises(DatabaseUnavailable):
        await session.run(pid)
    assert session.generation > generation
    generation = session.generation
    assert await session.run(pid) != first
    assert session.generation > generation
    await session.aclose()
    await session.aclose()


async def test_what_a_unit_raises_itself_does_not_end_the_session(application: Application) -> None:
    session = application.reading()

    def fail(_connection: sa.Connection) -> None:
        raise KeyError(1)

    await session.run(lambda _connection: None)
    generation = session.generation
    with pytest.raises(KeyError):
        await session.run(fail)
    assert session.generation == generation
    assert await session.run(lambda connection: connection.exec_driver_sql("select 1").scalar()) == 1
    await session.aclose()


async def test_the_drivers_own_errors_are_told_too(application: Application) -> None:
    session = application.reading()

    def ask(connection: sa.Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute("select * from nowhere")

    with pytest.raises(DatabaseRefused, match="nowhere"):
        await session.run(ask, transaction=False)
    await session.aclose()


def test_ddl_is_part_of_a_transaction(database: Database) -> None:
    with pytest.raises(DatabaseRefused):
        database.run_sync(
            lambda connection: [
                connection.exec_driver_sql("create table t (x)"),
                connection.exec_driver_sql("create trigger u after insert on nowhere begin select 1; end"),
            ]
        )
    with pytest.raises(DatabaseRefused):
        run(database, "select * from t")


def test_paths_that_are_special_in_uris(tmp_path: Path) -> None:
    for name in ("a b.db", "a?mode=ro.db", "a#b%20.db", "ä.db"):
        engine = sqlite_engine(tmp_path / name, mode="rwc")
        with engine.begin() as connection:
            connection.exec_driver_sql("create table t (x)")
        engine.dispose()
        assert (tmp_path / name).stat().st_size


def test_sqlite_waits_for_the_disk(sqlite_application: Application) -> None:
    assert sqlite_application.scalar("pragma synchronous") == 2


def test_relative_paths_are_relative_to_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:///app.db") == tmp_path / "app.db"
    assert sqlite_path("sqlite:////srv/app.db") == Path("/srv/app.db")


def test_names_of_our_own_tables() -> None:
    postgres, sqlite = Names("postgresql", "airy_trio"), Names.of("sqlite:///x.db", "airy_trio")
    assert (postgres.bare("t"), postgres.quoted("t"), postgres.table_schema) == ("t", '"airy_trio"."t"', "airy_trio")
    assert (sqlite.bare("t"), sqlite.quoted("t"), sqlite.table_schema) == ("airy_trio_t", '"airy_trio_t"', None)
    assert quote_identifier('a"b') == '"a""b"'
    assert quote_text("a'b") == "'a''b'"


def test_sessions_read_alike_whatever_the_database_prefers(postgres_application: Application) -> None:
    with postgres_application.engine.begin() as connection:
        database = connection.exec_driver_sql("select current_database()").scalar()
        connection.exec_driver_sql(f"alter database {database} set timezone = 'Asia/Tokyo'")
        connection.exec_driver_sql(f"alter database {database} set datestyle = 'SQL, DMY'")
        connection.exec_driver_sql(f"alter database {database} set client_encoding = 'latin1'")
    database_ = Database(
        postgres_engine(postgres_application.url, connect_timeout_s=5, settings={"lock_timeout": "7s"})
    )
    assert run(database_, "select cast(timestamptz '2020-01-02 03:00:00Z' as text)") == "2020-01-02 03:00:00+00"
    assert run(database_, "show client_encoding") == "UTF8"
    assert run(database_, "show lock_timeout") == "7s"
    database_.engine.dispose()


def test_behind_a_pooler_nothing_is_prepared(postgres_application: Application) -> None:
    database = Database(postgres_engine(postgres_application.url, connect_timeout_s=5, pooled=True))
    with database.engine.connect() as connection:
        for _ in range(20):
            connection.execute(sa.text("select :n"), {"n": 1})
        assert connection.exec_driver_sql("select count(*) from pg_prepared_statements").scalar() == 0
    database.engine.dispose()


def test_all_connections_in_use_is_a_matter_of_waiting() -> None:
    error = translated(sa.exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"))
    assert isinstance(error, DatabaseUnavailable)


def test_session_without_use_closes(any_application: Application) -> None:
    session = any_application.reading()
    trio.run(session.aclose)
    assert isinstance(session, Session)


@pytest.mark.parametrize(
    "url", ["postgresql://u:SECRET@h:5432/db", "postgresql://u@h:5432/db?password=SECRET&sslmode=require"]
)
def test_a_url_is_shown_without_its_password(url: str) -> None:
    told = shown(url)
    assert "SECRET" not in told
    assert "h:5432/db" in told
