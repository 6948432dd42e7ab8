"""Blocks of the documentation that cannot be run by themselves, used by the code that reads them."""

import json
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from airy_trio.auth.users import AuthOptions, Grant, grant_in
from airy_trio.events.destinations import parse
from airy_trio.events.models import TYPES
from airy_trio.log.options import GROUP
from airy_trio.websocket.request import read_head
from tests.application import Application
from tests.docs.pages import parts
from tests.docs.test_event_schema import validator
from tests.event_stream import Parser

LIBRARY: Final = Path(__file__).parents[1] / "library"


def documents(text: str) -> Iterator[Any]:
    """Yield the JSON documents of a text."""
    while text := text.strip():
        document, end = json.JSONDecoder().raw_decode(text)
        yield document
        text = text[end:]


def test_events_of_the_wire_contract_fit_the_schema() -> None:
    found = [event for block in parts("reference/wire.md", "json") for event in documents(block)]
    for event in found:
        validator().validate(event)
    assert sorted(event["type"] for event in found) == sorted(TYPES)


def test_event_stream_of_the_wire_contract_can_be_read() -> None:
    [block] = parts("reference/wire.md", "http")
    request, _, stream = block.split("\n\n", 2)
    head = read_head(f"{request}\n\n".replace("\n", "\r\n").encode())
    assert head is not None
    parser = Parser()
    subscribed, event, disconnect = parser.feed(f"{stream}\n".encode())
    assert (parser.retry, parser.comments) == (1870, 1)
    assert (subscribed.type, event.type, disconnect.type) == ("subscribed", "message", "disconnect")
    assert subscribed.json == {"position": subscribed.id, "resume": "resumed"}
    validator().validate(event.json)
    assert [*disconnect.json] == ["token", "reason"]


def test_claims_of_the_page_about_tokens_grant_what_they_list() -> None:
    [block] = parts("how-to/tokens.md", "json")
    claims = json.loads(block)
    destinations = frozenset(map(parse, claims["airy_destinations"]))
    assert len(destinations) == 2
    assert grant_in(claims, AuthOptions()) == Grant(destinations, frozenset({"web-shop"}))


def test_entry_point_of_the_page_about_stores_opens_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = parts("how-to/event-store.md", "toml")
    monkeypatch.syspath_prepend(LIBRARY)
    [(group, points)] = tomllib.loads(block)["project"]["entry-points"].items()
    [(name, value)] = points.items()
    assert (group, name) == (GROUP, "acme")
    assert EntryPoint(name, value, group).load().__name__ == "open_store"


def test_alembic_of_the_application_leaves_our_tables_alone(sqlite_application: Application, tmp_path: Path) -> None:
    [block] = parts("how-to/existing-schema.md", "python")
    sqlite_application.migrate()
    tables = sa.MetaData()
    tables.reflect(sqlite_application.engine, only=lambda name, _: not name.startswith("airy_trio_"))
    assert tables.tables
    environment = EnvironmentContext(Config(), ScriptDirectory(str(tmp_path)))
    with sqlite_application.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables)  # it would drop our tables
        exec(block, {"context": environment, "connection": connection, "target_metadata": tables})  # noqa: S102 - our page
        assert compare_metadata(environment.get_context(), tables) == []
