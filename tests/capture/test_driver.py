"""Statements sent directly to either driver: names, invalid text, and errors that leave the connection usable."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from airy_trio.capture.queries import Query
from airy_trio.database import sqlite_engine
from tests.application import Application


def test_parameters_and_special_characters_work_with_either_driver(any_application: Application) -> None:
    question = Query(sa.text("select :b || :a || :b, 'a\\:b%' where 'x' like :b"))
    with any_application.engine.begin() as connection:
        assert question.rows(connection, {"a": "1", "b": "%"}) == [("%1%", "a:b%")]
        assert question.rows(connection, {"a": "?", "b": "y"}) == []


@pytest.fixture
def lenient(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sqlite_engine(tmp_path / "any.db", mode="rwc", lenient=True)
    yield engine
    engine.dispose()


def test_invalid_utf_8_is_read_as_bytes(lenient: sa.Engine) -> None:
    question = Query(sa.text("select 'é' union all select cast(x'ff' as text) union all select :last"))
    with lenient.begin() as connection:
        for _ in range(2):
            assert question.rows(connection, {"last": "z"}) == [("é",), (b"\xff",), ("z",)]
            assert connection.exec_driver_sql("select cast(x'fe' as text)").scalar() == b"\xfe"


def test_driver_error_leaves_the_connection_unchanged(lenient: sa.Engine) -> None:
    with lenient.begin() as connection:
        with pytest.raises(sqlite3.OperationalError, match="nothing"):
            Query(sa.text("select 1 from nothing")).rows(connection, {})
        assert connection.exec_driver_sql("select cast(x'fe' as text)").scalar() == b"\xfe"
