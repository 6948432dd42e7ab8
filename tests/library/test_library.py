"""airy-trio as a library, in the program of another project."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import airy_trio
import airy_trio.stores
from airy_trio.errors import AiryTrioError
from airy_trio.stores import StoreUnavailable
from tests.library.acme_events import open_store

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("program.py")
TAG = {"type": "tag.updated", "payload": {"id": "t1", "name": "flag", "color": "tag-red"}}


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder without the checkout, so that only installed packages can be imported."""
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=50,
    )


@pytest.mark.slow
def test_serves_in_a_strangers_program(tmp_path: Path) -> None:
    ended = run(PROGRAM, str(tmp_path / "inbox.db"), folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"resume": "live", "event": TAG, "error": "503-shutting-down", "code": 1012}
    assert "database.url: found integer" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_the_example_store_raises_only_what_the_port_names(tmp_path: Path) -> None:
    async with open_store(f"acme://{tmp_path}/later/events.db") as store:
        with pytest.raises(StoreUnavailable):
            await store.bounds()
        (tmp_path / "later").mkdir()
        assert (await store.bounds()).last == 0
    with pytest.raises(AiryTrioError, match=r"log\.url"):
        async with open_store("acme://host"):
            pass


def test_page_shows_the_example_store_as_it_is_checked() -> None:
    [shown] = re.findall(
        r"<!-- file: acme_events.py -->\n```python\n(.*?)```",
        (ROOT / "docs" / "how-to" / "event-store.md").read_text(),
        re.DOTALL,
    )
    assert shown == (Path(__file__).with_name("acme_events.py")).read_text()


def test_every_name_for_authors_of_stores_is_in_the_reference() -> None:
    names = airy_trio.stores.__all__
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    section = page.partition("\n## Event stores\n")[2].partition("\n## ")[0]
    assert [name for name in names if not hasattr(airy_trio.stores, name) or f"\n### {name}\n" not in section] == []


@pytest.mark.slow
def test_import_loads_nothing_before_use(tmp_path: Path) -> None:
    heavy = ("trio", "sqlalchemy", "airy_trio.app", "airy_trio.settings")
    code = "import sys, airy_trio; print(*set(sys.modules) & set(sys.argv[1:])); airy_trio.serve; airy_trio.settings"
    ended = run("-c", code, *heavy, folder=tmp_path)
    assert (ended.returncode, ended.stdout.split()) == (0, []), ended.stderr


def test_serve_takes_nothing_that_only_the_command_line_has() -> None:
    shown = inspect.signature(airy_trio.serve).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    assert [one.name for one in shown] == ["settings", "stopping", "task_status"]
    assert [one.name for one in shown if one.kind is keyword] == ["stopping", "task_status"]


@pytest.mark.parametrize("name", airy_trio.__all__)
def test_every_published_name_is_there(name: str) -> None:
    assert getattr(airy_trio, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'server'"):
        _ = airy_trio.server
