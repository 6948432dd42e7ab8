"""Event stores of other packages: found by name, reported in one line if missing, used by a real server."""

import sys
from pathlib import Path

import pytest
import trio

from airy_trio import app
from airy_trio.errors import SettingsError
from airy_trio.log.options import find_store
from tests.application import Application
from tests.capture.watched import ONLY_TAGS, Watched
from tests.e2e.route import configure, listening
from tests.processes import run, server

EXAMPLE = Path(__file__).parents[1] / "library" / "acme_events.py"
TIMEOUT_S = 90.0


def install(folder: Path, source: str, entry_points: str) -> None:
    """Install the package ``acme-events`` into a folder, as pip would."""
    (folder / "acme_events.py").write_text(source)
    info = folder / "acme_events-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-events\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[airy_trio.event_stores]\n{entry_points}")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a store that works, one that cannot be imported, and one with the name of our own."""
    names = "acme = acme_events:open_acme\nbroken = acme_missing:x\nredis = acme_events:x\n"
    install(tmp_path, "def open_acme(url):\n    return url\n", names)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_events", raising=False)


def test_built_in_store_is_found() -> None:
    assert find_store("redis").__module__ == "airy_trio.log.redis.store"


@pytest.mark.usefixtures("installed")
def test_a_store_of_a_package_is_found() -> None:
    assert str(find_store("acme")("acme://host")) == "acme://host"


@pytest.mark.usefixtures("installed")
def test_built_in_store_cannot_be_replaced() -> None:
    assert find_store("redis").__module__ == "airy_trio.log.redis.store"


@pytest.mark.usefixtures("installed")
def test_an_unknown_store_lists_the_available_ones() -> None:
    with pytest.raises(SettingsError) as refused:
        find_store("kafka")
    assert (
        str(refused.value)
        == 'log.store: there is no event store "kafka"; available are acme, broken, memory, redis, sql'
    )


@pytest.mark.usefixtures("installed")
def test_a_missing_dependency_is_named() -> None:
    with pytest.raises(SettingsError, match=r'^log.store: "broken" needs a package that is not .*acme_missing'):
        find_store("broken")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coredis", None)
    monkeypatch.delitem(sys.modules, "airy_trio.log.redis.store", raising=False)
    with pytest.raises(SettingsError, match=r"coredis.*; pip install airy-trio\[redis\]$"):
        find_store("redis")


@pytest.mark.slow
@pytest.mark.timeout(120)  # four processes start, one after another, on a machine that may be busy
async def test_workers_use_a_store_of_a_package(sqlite_application: Application, tmp_path: Path) -> None:
    """With the example of the documentation: an append wakes the other processes, and a restart loses nothing."""
    packages = tmp_path / "packages"
    packages.mkdir()
    install(packages, EXAMPLE.read_text(), "acme.events = acme_events:open_store\n")
    environ = {"PYTHONPATH": str(packages)}
    log = f'[log]\nstore = "acme.events"\nurl = "acme.events-1://agent:hunter2@here{tmp_path}/events.db"\n'
    with trio.fail_after(TIMEOUT_S):
        config = configure(sqlite_application, tmp_path, log, workers=2)
        async with server(config, environ=environ) as before:
            before.port = (await before.record("all workers listen"))["port"]
            async with listening(before) as one, listening(before) as other:
                sqlite_application.tag("t1")
                assert (await one.next()).object == (await other.next()).object == ("tag", "t1")
            assert await before.terminate() == 0
        checked = await run("check", "--config", str(config), environ=environ)
        assert checked.code == 0, checked.err
        sqlite_application.tag("t2")
        config = configure(sqlite_application, tmp_path, log)
        async with server(config, environ=environ) as after, listening(after, after=one.events[0].position) as client:
            assert client.receipt.get("resume") == "resumed"
            assert [(event.offset, event.object) for event in await client.take(1)] == [(2, ("tag", "t2"))]
    lines = [*before.err.all, *after.err.all, *checked.out.splitlines(), *checked.err.splitlines()]
    assert any('"store": "acme.events"' in line for line in lines)
    assert not [line for line in lines if "hunter2" in line]


async def test_polling_uses_a_store_of_a_package(
    sqlite_application: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watched(sqlite_application)
    install(tmp_path, EXAMPLE.read_text(), "acme.events = acme_events:open_store\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_events", raising=False)
    log = f'[log]\nstore = "acme.events"\nurl = "acme.events-1://here{tmp_path}/events.db"\n'
    capture = f'{ONLY_TAGS}[changes]\ncapture = "updated_at"\n'
    settings = sqlite_application.migrate(f"{capture}{log}[listener]\nport = 0\n", with_tables=False)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(app.serve, settings)
            nursery.cancel_scope.cancel()
    assert (tmp_path / "events.db").exists()
