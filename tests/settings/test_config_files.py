"""The files in config/ agree with the settings of the server."""

import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

from airy_trio.admin.server import AdminOptions
from airy_trio.capture.mapping import KINDS
from airy_trio.settings import DatabaseSection, LoggingOptions, Settings, load, parse
from airy_trio.settings.reader import options_of

CONFIG = Path(__file__).parents[2] / "config"
EXAMPLE = (CONFIG / "example.toml").read_text()
WHOLE_EXAMPLE = re.sub(r"^#(?=\w+ = )", "", EXAMPLE, flags=re.MULTILINE)
"""The example with all commented settings enabled."""


def paths_in(document: dict[str, Any]) -> set[tuple[str, ...]]:
    """Return the paths of the settings in a file: sections and keys, without the keys that users choose."""
    sections = set(options_of(Settings))
    found: set[tuple[str, ...]] = set()

    def walk(table: dict[str, Any], path: tuple[str, ...]) -> None:
        for key, value in table.items():
            here = (*path, key)
            found.add(here)
            if isinstance(value, dict) and any(other[:-1] == here for other in sections):
                walk(value, here)

    walk(document, ())
    return found


def test_the_example_shows_every_setting_and_no_other() -> None:
    assert paths_in(tomllib.loads(WHOLE_EXAMPLE)) == set(options_of(Settings))


def test_the_example_shows_the_defaults() -> None:
    settings = load(CONFIG / "example.toml", {})
    assert settings == Settings(database=DatabaseSection(url=settings.database.url))


def test_example_has_every_default_that_toml_can_write() -> None:
    active = paths_in(tomllib.loads(EXAMPLE))
    shown_only = {path[-1] for path in set(options_of(Settings)) - active}
    assert shown_only == {"name", "columns", "constants", "values"}


def test_examples_without_default_are_accepted() -> None:
    tables = parse(WHOLE_EXAMPLE, {}).tables
    for kind in KINDS:
        mapping = tables.of(kind)
        assert mapping.name
        assert all(attrs.astuple(mapping, recurse=False)[1:4])


def test_every_setting_of_the_example_is_explained() -> None:
    lines = EXAMPLE.splitlines()
    below_messages = EXAMPLE.index("[database.tables.metadata]")
    explained_once = set(re.findall(r"^#?(\w+) = ", EXAMPLE[:below_messages], flags=re.MULTILINE))
    for number, line in enumerate(lines):
        key = re.match(r"#?(\w+) = ", line)
        if (
            key
            and key[1] not in explained_once
            and key[1] not in {"retain_events", "tail_bytes", "connections_per_address_max"}
        ):
            assert lines[number - 1].startswith("# "), line


def test_dev_uses_sqlite_and_console_logs() -> None:
    settings = load(CONFIG / "dev.toml", {})
    assert settings.database.url == "sqlite:///airy-trio-dev.db"
    assert settings.logging == LoggingOptions(level="debug", format="console")
    assert settings.listener.host == "127.0.0.1"


def test_prod_takes_its_database_from_the_environment() -> None:
    url = "postgresql://airy:hunter2@db/airy"
    settings = load(CONFIG / "prod.toml", {"DATABASE_URL": url})
    assert settings.database.url == url
    assert settings.listener.host == "0.0.0.0"  # noqa: S104 - the purpose of the file
    assert settings.logging.format == "json"
    assert (settings.listener.port, settings.admin) == (8080, AdminOptions())


def test_prod_takes_ports_and_addresses_from_the_environment() -> None:
    environ = {"DATABASE_URL": "postgresql://airy@db/airy", "PORT": "80", "ADMIN_HOST": "::", "ADMIN_TOKEN": "t" * 16}
    settings = load(CONFIG / "prod.toml", environ)
    assert (settings.listener.port, settings.admin) == (80, AdminOptions(host="::", token="t" * 16))


@pytest.mark.parametrize("name", ["dev.toml", "prod.toml", "example.toml", "airy.toml", "chatwoot.toml"])
def test_no_file_contains_a_password(name: str) -> None:
    for match in re.finditer(r"://([^@\s\"]*)@", (CONFIG / name).read_text()):
        assert match[1] in {"airy", "USER", "USER:PASSWORD"}
