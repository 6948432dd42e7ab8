"""The generated reference is current and complete."""

import re
from typing import Final

import pytest

from airy_trio.cli import airy_trio
from airy_trio.delivery.disconnects import CATALOGUE
from airy_trio.settings import Settings
from airy_trio.settings.reader import options_of
from tests.docs.reference import FOLDER, PAGES, ROOT, generated

AGAIN: Final = "run `make reference`"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_current(name: str) -> None:
    assert (FOLDER / name).read_text() == generated(name), AGAIN


def test_no_setting_is_missing() -> None:
    page = (FOLDER / "settings.md").read_text()
    for path in options_of(Settings):
        section, name = ".".join(map(str, path[:-1])), path[-1]
        body = re.split(r"^## ", page.partition(f"\n## [{section}]\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
        heading = f"\n## [{'.'.join(map(str, path))}"
        assert f"| `{name}` |" in body or heading in page, path


def test_no_command_is_missing() -> None:
    page = (FOLDER / "command-line.md").read_text()
    for name, command in airy_trio.commands.items():
        body = page.partition(f"\n## airy-trio {name}\n")[2].partition("\n## ")[0]
        assert all(flag in body for option in command.params for flag in option.opts if flag.startswith("--")), name


def test_no_disconnect_reason_is_missing() -> None:
    page = (FOLDER / "disconnects.md").read_text()
    for row in CATALOGUE:
        assert f"| {row.name} | {f'`{row.token}`' if row.token else ''} | {row.close_code or ''} |" in page


def test_cited_sections_of_the_wire_contract_exist() -> None:
    headings = re.findall(r"^## (.+)$", (FOLDER / "wire.md").read_text(), flags=re.MULTILINE)
    texts = [path.read_text() for path in (ROOT / "airy_trio").rglob("*.py")]
    cited = {heading for text in texts for heading in re.findall(r'wire contract, "([^"]+)"', text, re.IGNORECASE)}
    assert len(cited) > 5
    assert cited <= set(headings)
    assert not [text for text in texts if re.search(r"wire contract\W+section", text, re.IGNORECASE)]


def test_each_line_of_the_wire_contract_has_a_test() -> None:
    lines = re.findall(r"^(\d+)\. ", (FOLDER / "wire.md").read_text(), flags=re.MULTILINE)
    files = "stomp/test_wire_contract.py", "sessions/test_wire_contract.py", "sessions/test_event_streams.py"
    tests = [(ROOT / "tests" / file).read_text() for file in files]
    tested = {int(number) for text in tests for number in re.findall(r"# Line (\d+)", text)}
    assert [int(number) for number in lines] == sorted(tested)
