"""Rows that cannot be told, each beside good ones in one transaction: named, counted, passed over."""

from pathlib import Path

import pytest
import trio

from tests.application import Application
from tests.e2e.route import configure, listening
from tests.processes import json_object, server

TIMEOUT_S = 40.0
TAG = "insert into tags values ({}, 'flag', 'red')"
FAULTS = {  # what is written, and the fault that is named
    TAG.format("'a' || char(0) || 'b'"): "id has a NUL",
    TAG.format("cast(x'ff41' as text)"): "id is not UTF-8 text",
    TAG.format("null"): "id is NULL",
    "insert into messages values ('m1', 'c' || char(0), 'ch1', 'x', 'failed', true, '2024-01-01', 's', null)": (
        "conversation_id has a NUL"
    ),
    "insert into channels values ('ch' || char(0), 's', 'x', true)": "id has a NUL",
    "insert into metadata (subject, identifier, key) values ('message', 'm' || char(0), 'k')": "identifier has a NUL",
}


@pytest.mark.parametrize("log", ["sqlite", "postgres"])
async def test_each_is_named_and_its_neighbours_arrive(
    log: str, request: pytest.FixtureRequest, sqlite_application: Application, tmp_path: Path
) -> None:
    """Postgres, which can be the place of the log, holds less than a file of SQLite can."""
    sqlite_application.migrate()
    sqlite_application.execute(
        *(f"drop table {name}" for name in ("tags", "channels")),
        "create table tags (id text, name text, color text)",
        "create table channels (id text, source text, source_channel_id text, connected boolean)",
    )
    url = f"sqlite:///{tmp_path}/e.db" if log == "sqlite" else request.getfixturevalue("postgres_database")
    config = configure(sqlite_application, tmp_path, f'[log]\nurl = "{url}"\n')
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, listening(serving) as ours:
            good = [f"good-{number}" for number in range(len(FAULTS) + 1)]
            pairs = zip((TAG.format(f"'{id_}'") for id_ in good), FAULTS, strict=False)
            written = [statement for pair in pairs for statement in pair]
            sqlite_application.execute(*written, TAG.format(f"'{good[-1]}'"))
            assert [event.object[1] for event in await ours.take(len(good))] == good
            assert await serving.terminate() == 0
    named = [json_object(line).get("reason") for line in serving.err.all if "row fault" in line]
    assert sorted(filter(None, named)) == sorted(FAULTS.values())
