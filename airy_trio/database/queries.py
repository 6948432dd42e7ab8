"""Queries on the raw driver, which returns plain tuples: SQLAlchemy's rows would double the cost of a bulk change."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from attrs import define, field, frozen

from airy_trio.database import POSTGRES, is_refusal

Row = tuple[Any, ...]

_NOT_UTF8: Final = "could not decode to utf-8"


@define(eq=False)
class Query:
    """A statement with named parameters, which is compiled once."""

    statement: sa.TextClause
    _compiled: sa.Compiled | None = field(default=None, init=False)

    def rows(self, connection: sa.Connection, arguments: Mapping[str, object]) -> list[Row]:
        """Return all rows, in a transaction that the caller has begun. Raises the driver's errors."""
        if self._compiled is None:
            self._compiled = self.statement.compile(dialect=connection.dialect)
        sql = str(self._compiled)
        driver: Any = connection.connection.driver_connection
        if connection.dialect.name == POSTGRES:
            return _fetch(driver, sql, arguments)
        names: tuple[str, ...] = self._compiled.positiontup or ()  # type: ignore[attr-defined]
        return _fetch_text(driver, sql, tuple(arguments[name] for name in names))


@frozen
class Rows:
    """The rows of a query. ``refused``: each key for which the database refused to answer, and the reason."""

    rows: Sequence[Row] = ()
    refused: Mapping[Any, str] = field(factory=dict)


@frozen
class BoundQuery:
    """A query and the keys that it is about, which become an argument only when it runs."""

    query: Query
    keys: Sequence[object] = ()

    @property
    def arguments(self) -> Mapping[str, object]:
        """The keys as JSON, under the name ``keys``."""
        return _as_json(self.keys)

    def answer(self, connection: sa.Connection) -> Rows:
        """Return the rows of all keys, in a transaction that the caller has begun. Raises the driver's errors.

        One row can make the database refuse the whole query: a date too large for a cast, a value for which the
        mapping's ``where`` fails. So a refused query runs again for each half of its keys, down to single keys, in the
        same snapshot: on Postgres a savepoint keeps the transaction. A query that is refused without any key is wrong
        itself, and its error is raised.
        """
        postgres = connection.dialect.name == POSTGRES
        if postgres and self.keys:
            connection.exec_driver_sql("savepoint airy_query")
        rows: list[Row] = []
        refused: dict[object, str] = {}
        parts = [self.keys]
        while parts:
            keys = parts.pop()
            try:
                rows += self.query.rows(connection, _as_json(keys))
            except Exception as error:
                if not keys or not is_refusal(error):
                    raise
                if postgres:
                    connection.exec_driver_sql("rollback to savepoint airy_query")
                if keys is self.keys:
                    self.query.rows(connection, _as_json(()))
                if len(keys) == 1:
                    refused[keys[0]] = refusal_reason(error)
                else:
                    half = len(keys) // 2
                    parts += keys[half:], keys[:half]
        return Rows(rows, refused)


def _as_json(keys: Sequence[object]) -> Mapping[str, object]:
    return {"keys": json.dumps(keys, ensure_ascii=False)}  # a database without encoding refuses an escape


def refusal_reason(error: Exception) -> str:
    """Return why a single key was refused; never the driver's message, which quotes the row's values."""
    code = getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", "")
    return (
        f"cannot be read: the database refuses one of its values, or where fails on it ({type(error).__name__} {code})"
    )


def _fetch(driver: Any, sql: str, arguments: object) -> list[Row]:  # noqa: ANN401 - either driver's connection
    cursor = driver.cursor()
    try:
        found: list[Row] = cursor.execute(sql, arguments).fetchall()
    finally:
        cursor.close()
    return found


def _fetch_text(driver: sqlite3.Connection, sql: str, arguments: tuple[object, ...]) -> list[Row]:
    """Do the same on SQLite, where text is nearly always UTF-8.

    A lenient connection (``sqlite_engine``) calls a Python function for each text. So the query runs strictly first,
    and leniently only if some text is not UTF-8. Within one transaction both runs see the same rows.
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
