"""Contradictions between capture, mapping and the place of the events."""

from pathlib import Path

import pytest

from airy_trio.database import sqlite_path
from airy_trio.settings import parse
from tests.settings.reading import fault, faults, read

POSTGRES = '[database]\nurl = "postgresql://airy:hunter2@h/d"\n'
BY_UPDATED_AT = '[changes]\ncapture = "updated_at"\n'


@pytest.mark.parametrize("url", ["sqlite:///application.db", "sqlite+pysqlite:///./application.db"])
def test_events_must_not_be_in_the_application_file(url: str) -> None:
    assert fault(f'[log]\nurl = "{url}"') == (
        'log.url: this is the application\'s file (database.url); name another file, or "" for one next to it'
    )
    read('[log]\nurl = "sqlite:///other.db"')


def test_log_of_a_file_whose_name_has_a_meaning_in_a_url() -> None:
    settings = parse('[database]\nurl = "sqlite:////data/a%3Fb%2520c.db"\n', {})
    assert sqlite_path(settings.log_url) == Path("/data/a?b%20c.db.airy-trio.db")


@pytest.mark.parametrize("log", ["", 'url = "postgresql+psycopg://airy:hunter2@h/d"'])
def test_updated_at_needs_another_place_for_events(log: str) -> None:
    (line,) = faults(f"{POSTGRES}{BY_UPDATED_AT}[log]\n{log}")
    assert line.startswith('log.url: changes.capture = "updated_at" writes nothing to the database of database.url')
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "log", ['url = "postgresql://h/other"', 'url = "sqlite:///events.db"', 'store = "memory"', 'store = "acme"']
)
def test_updated_at_accepts_another_place_for_events(log: str) -> None:
    assert parse(f"{POSTGRES}{BY_UPDATED_AT}[log]\n{log}", {}).changes.reads_only


def test_deletes_need_a_where_with_updated_at() -> None:
    assert fault(f"{BY_UPDATED_AT}[events]\ndeletes = true").startswith("events.deletes: changes.capture")
    for kind in ("messages", "tags"):
        read(f'{BY_UPDATED_AT}[events]\ndeletes = true\n[database.tables.{kind}]\nwhere = "deleted_at is null"')


@pytest.mark.parametrize("overlap_s", [0.1, 86_400])
def test_overlap_needs_updated_at(overlap_s: float) -> None:
    assert read(f"{BY_UPDATED_AT}overlap_s = {overlap_s}").changes.overlap_s == overlap_s
    assert fault(f"[changes]\noverlap_s = {overlap_s}") == (
        'changes: overlap_s is for capture = "updated_at", but capture is "triggers"'
    )


def test_positions_are_retained_at_least_as_long_as_events() -> None:
    read("[log]\nretain_s = 100\nretain_durables_s = 100")
    assert fault("[log]\nretain_s = 100\nretain_durables_s = 99") == (
        "log: retain_durables_s is less than retain_s, but a position must be retained as long as the events after it"
    )


@pytest.mark.parametrize("kind", ["messages", "channels", "tags"])
def test_updated_at_column_needs_capture_by_updated_at(kind: str) -> None:
    mapped = f'[database.tables.{kind}]\ncolumns = {{ updated_at = "changed" }}\n'
    assert read(mapped + BY_UPDATED_AT).changes.reads_only
    assert fault(mapped) == (f'database.tables.{kind}.columns.updated_at: used only if changes.capture is "updated_at"')


def test_metadata_always_has_updated_at() -> None:
    read('[database.tables.metadata]\ncolumns = { updated_at = "changed" }\n')
