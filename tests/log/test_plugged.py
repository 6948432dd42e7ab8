"""Stores of other packages are found by name, and what is missing is told in one line."""

import sys
from pathlib import Path

import pytest

from airy_trio.errors import SettingsError
from airy_trio.log.plugged import find_store
from airy_trio.log.redis_streams import open_store

OURS = {"redis": "airy_trio.log.redis_streams:open_store"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with two event stores, as pip would leave it."""
    (tmp_path / "acme_events.py").write_text("def open_acme(url):\n    return url\n")
    info = tmp_path / "acme_events-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-events\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[airy_trio.event_stores]\nacme = acme_events:open_acme\nbroken = acme_missing:x\nredis = acme_events:x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_events", raising=False)


def test_one_of_ours() -> None:
    assert find_store("redis", OURS) is open_store


@pytest.mark.usefixtures("installed")
def test_one_of_another_package() -> None:
    assert str(find_store("acme", OURS)("acme://host")) == "acme://host"


@pytest.mark.usefixtures("installed")
def test_ours_cannot_be_replaced() -> None:
    assert find_store("redis", OURS) is open_store


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_is_told_with_those_that_there_are() -> None:
    with pytest.raises(SettingsError) as refused:
        find_store("kafka", OURS)
    assert (
        str(refused.value) == 'log.store: there is no event store "kafka", there are acme, broken, memory, redis, sql'
    )


@pytest.mark.usefixtures("installed")
def test_what_a_store_needs_and_is_not_there_is_told() -> None:
    with pytest.raises(SettingsError, match=r'^log.store: "broken" needs what is not installed: .*acme_missing'):
        find_store("broken", OURS)


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coredis", None)
    monkeypatch.delitem(sys.modules, "airy_trio.log.redis_streams", raising=False)
    with pytest.raises(SettingsError, match=r"coredis.*; pip install airy-trio\[redis\]$"):
        find_store("redis", OURS)
