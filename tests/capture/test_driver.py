"""Questions put straight to either driver: names, text that is none, and errors that leave the connection usable."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from airy_trio.database import sqlite_engine
from airy_trio.database.queries import Query
from tests.application import Application


def test_names_are_given_to_either_driver_and_sql_may_hold_what_is_special_to_one(any_application: Application) -> None:
    question = Query(sa.text("select :b || :a || :b, 'a\\:b%' where 'x' like :b"))
    with any_application.engine.begin() as connection:
        assert question.rows(connection, {"a": "1", "b": "%"}) == [("%1%", "a:b%")]
        assert question.rows(connection, {"a": "?", "b": "y"}) == []


@pytest.fixture
def lenient(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sqlite_engine(tmp_path / "any.db", mode="rwc", lenient=True)
    yield engine
    engine.dispose()


def test_text_that_is_not_utf_8_comes_as_bytes_beside_good_text(lenient: sa.Engine) -> None:
    question = Query(sa.text("select 'é' union all select cast(x'ff' as text) union all select :last"))
    with lenient.begin() as connection:
        for _ in range(2):
            assert question.rows(connection, {"last": "z"}) == [("é",), (b"\xff",), ("z",)]
            assert connection.exec_driver_sql("select cast(x'fe' as text)").scalar() == b"\xfe"


def test_an_error_of_the_driver_is_raised_and_leaves_the_connection_as_it_was(lenient: sa.Engine) -> None:
    with lenient.begin() as connection:
        with pytest.raises(sqlite3.OperationalError, match="nothing"):
            Query(sa.text("select 1 from nothing")).rows(connection, {})
        assert connection.exec_driver_sql("select cast(x'fe' as text)").scalar() == b"\xfe"
