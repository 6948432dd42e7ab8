"""Arrays in binary format arrive as they were given."""

from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from airy_trio.database.postgres import MonitoredConnection, Pipeline, Statement, array


@pytest.mark.parametrize(
    "type_, values",
    [
        ("text", []),
        ("text", ["a"]),
        ("text", ["same"] * 3),
        ("text", ["", 'q"uo\\te', "{,}", "NULL", "ü日", None]),
        ("text", [None, None]),
        ("bytea", [b"", bytes(range(256)), None]),
        ("bytea", [b"\0"] * 2),
        ("bool", [True, False, None]),
        ("bool", [False, False]),
        ("int8", [0, -1, 2**63 - 1, -(2**63), None]),
    ],
)
async def test_array_arrives_unchanged(postgres_database: str, type_: str, values: Sequence[object]) -> None:
    url = sa.make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    with MonitoredConnection.opened(url) as connection:
        statement = Statement(f"select * from unnest($1::{type_}[])", frozenset({0}))
        [rows] = await Pipeline(connection).run((statement, [array(type_, values)]))
        assert rows == [(value,) for value in values]
