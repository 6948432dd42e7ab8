"""Errors are translated without the statement's parameters, and classified by whether a retry can succeed."""

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from airy_trio.database import (
    Database,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    postgres_engine,
    sqlite_engine,
    sqlite_path,
    translated,
)
from tests.application import Application
from tests.postgres import Postgres


def run(database: Database, statement: str, parameters: dict[str, object] | None = None) -> Any:  # noqa: ANN401 - any value of the statement
    return database.run_sync(lambda connection: connection.execute(sa.text(statement), parameters or {}).scalar())


SECRET = "s3cret-value"


@pytest.mark.parametrize(
    "statement",
    ["select * from nowhere where x = :p", "insert into t values (:p)", "select cast(:p as", "select nope(:p)"],
)
def test_error_contains_no_statement_and_no_parameters(
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


def test_our_own_bug_is_not_translated(database: Database) -> None:
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
def test_sqlite_codes_are_classified(code: int, kind: type[DatabaseError]) -> None:
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
        (psycopg.errors.ProgramLimitExceeded("an index row that is too large"), DatabaseRefused),
        (psycopg.errors.UndefinedTable("none"), DatabaseRefused),
        (psycopg.errors.InsufficientPrivilege("no"), DatabaseRefused),
        (psycopg.errors.InvalidTextRepresentation("what"), DatabaseRefused),
    ],
)
def test_postgres_errors_are_classified(error: psycopg.Error, kind: type[DatabaseError]) -> None:
    found = translated(error)
    assert type(found) is kind
    assert isinstance(found, DatabaseError)
    assert found.sqlstate == error.sqlstate


def test_unreachable_database_is_unavailable(postgres: Postgres, tmp_path: Path) -> None:
    wrong = postgres.password_url("postgres", "wr0ng")
    for url in (wrong, f"postgresql://u:{SECRET}@127.0.0.1:1/x", f"postgresql://u:{SECRET}@/x?host={tmp_path}"):
        with pytest.raises(DatabaseUnavailable) as caught:
            run(Database(postgres_engine(url, connect_timeout_s=2)), "select 1")
        assert not any(secret in str(caught.value) for secret in (SECRET, "wr0ng"))
    with pytest.raises(DatabaseUnavailable, match=rf"unable to open database file \({tmp_path}/none.db\)$"):
        run(Database(sqlite_engine(tmp_path / "none.db")), "select 1")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("this is no database, but a text that is longer than the header of one" * 9)
    text = Database(sqlite_engine(tmp_path / "text.db"))
    with pytest.raises(DatabaseRefused, match="file is not a database"):
        run(text, "select * from t")
    text.engine.dispose()


def test_file_locked_by_a_writer_is_unavailable(sqlite_application: Application) -> None:
    hasty = Database(sqlite_engine(sqlite_path(sqlite_application.url), busy_timeout_s=0))
    with sqlite_application.engine.begin() as connection:
        connection.exec_driver_sql("create table t (x)")
        with pytest.raises(DatabaseUnavailable, match="locked"):
            hasty.run_sync(lambda _connection: None, immediate=True)
    hasty.engine.dispose()


def test_connection_lost_during_a_copy_is_unavailable(postgres_application: Application) -> None:
    """The driver raises the error, not SQLAlchemy."""
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


def test_exhausted_pool_is_unavailable() -> None:
    error = translated(sa.exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"))
    assert isinstance(error, DatabaseUnavailable)
