"""Rows straight from the driver, as plain tuples: of a bulk change SQLAlchemy's own rows would cost as much again.

Knows how each driver is asked; refuses to know what is asked for.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from attrs import define, field, frozen

from airy_trio.database import POSTGRES

Row = tuple[Any, ...]

_NOT_UTF8: Final = "could not decode to utf-8"


@define
class Question:
    """A statement with named parameters, asked again and again."""

    statement: sa.TextClause
    _compiled: sa.Compiled | None = field(default=None, init=False)

    def rows(self, connection: sa.Connection, arguments: Mapping[str, object]) -> list[Row]:
        """All rows that it gives now, in a transaction that the caller has begun. Raises the driver's errors."""
        if self._compiled is None:
            self._compiled = self.statement.compile(dialect=connection.dialect)
        sql = str(self._compiled)
        driver: Any = connection.connection.driver_connection
        if connection.dialect.name == POSTGRES:
            return _fetch(driver, sql, arguments)
        places: tuple[str, ...] = self._compiled.positiontup or ()  # type: ignore[attr-defined]
        return _fetch_text(driver, sql, tuple(arguments[name] for name in places))


@frozen
class Asked:
    """A question about keys, which are put into words only where it is really asked."""

    question: Question
    keys: Sequence[object]

    @property
    def arguments(self) -> Mapping[str, object]:
        """The question's ``keys``, as JSON."""
        keys = json.dumps(self.keys, ensure_ascii=False)  # an escape is refused by a database without encoding
        return {"keys": keys}

    def rows(self, connection: sa.Connection) -> list[Row]:
        """See ``Question.rows``."""
        return self.question.rows(connection, self.arguments)


def _fetch(driver: Any, sql: str, arguments: object) -> list[Row]:  # noqa: ANN401 - either driver's connection
    cursor = driver.cursor()
    try:
        found: list[Row] = cursor.execute(sql, arguments).fetchall()
    finally:
        cursor.close()
    return found


def _fetch_text(driver: sqlite3.Connection, sql: str, arguments: tuple[object, ...]) -> list[Row]:
    """The same of SQLite, whose text is nearly always UTF-8.

    A lenient connection (``database.sqlite_engine``) calls Python for each text, so it is asked that way only where
    some text is not UTF-8. Within one transaction the second answer is the first one.
    """
    lenient = driver.text_factory
    driver.text_factory = str
    try:
        return _fetch(driver, sql, arguments)
    except sqlite3.OperationalError as error:
        if lenient is str or _NOT_UTF8 not in str(error).lower():
            raise
    finally:
        driver.text_factory = lenient
    return _fetch(driver, sql, arguments)
