"""The settings of a new connection."""

import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airy_trio.database import Database, DatabaseRefused, postgres_engine, sqlite_engine
from tests.application import Application


def run(database: Database, statement: str, parameters: dict[str, object] | None = None) -> Any:  # noqa: ANN401 - any value of the statement
    return database.run_sync(lambda connection: connection.execute(sa.text(statement), parameters or {}).scalar())


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


def test_paths_with_special_characters_of_uris(tmp_path: Path) -> None:
    for name in ("a b.db", "a?mode=ro.db", "a#b%20.db", "ä.db"):
        engine = sqlite_engine(tmp_path / name, mode="rwc")
        with engine.begin() as connection:
            connection.exec_driver_sql("create table t (x)")
        engine.dispose()
        assert (tmp_path / name).stat().st_size


def test_signal_while_a_connection_is_returned_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of pytest
    engine = sqlite_engine(tmp_path / "a.db", mode="rwc")

    @sa.event.listens_for(engine, "reset")
    def interrupt(*_: object) -> None:
        raise SystemExit

    with pytest.raises(SystemExit), engine.connect():
        pass
    engine.dispose()
    assert capsys.readouterr().err == ""


def test_sqlite_waits_for_the_disk(sqlite_application: Application) -> None:
    assert sqlite_application.scalar("pragma synchronous") == 2


def test_values_read_alike_whatever_the_database_settings(postgres_application: Application) -> None:
    with postgres_application.engine.begin() as connection:
        database = connection.exec_driver_sql("select current_database()").scalar()
        connection.exec_driver_sql(f"alter database {database} set timezone = 'Asia/Tokyo'")
        connection.exec_driver_sql(f"alter database {database} set datestyle = 'SQL, DMY'")
        connection.exec_driver_sql(f"alter database {database} set client_encoding = 'latin1'")
        connection.exec_driver_sql(f"alter database {database} set default_transaction_isolation = 'serializable'")
    database_ = Database(
        postgres_engine(postgres_application.url, connect_timeout_s=5, settings={"lock_timeout": "7s"})
    )
    assert run(database_, "select cast(timestamptz '2020-01-02 03:00:00Z' as text)") == "2020-01-02 03:00:00+00"
    assert run(database_, "show client_encoding") == "UTF8"
    assert run(database_, "show transaction_isolation") == "read committed"
    assert run(database_, "show lock_timeout") == "7s"
    database_.engine.dispose()


def test_nothing_is_prepared_behind_a_pooler(postgres_application: Application) -> None:
    database = Database(postgres_engine(postgres_application.url, connect_timeout_s=5, pooled=True))
    with database.engine.connect() as connection:
        for _ in range(20):
            connection.execute(sa.text("select :n"), {"n": 1})
        assert connection.exec_driver_sql("select count(*) from pg_prepared_statements").scalar() == 0
    database.engine.dispose()
