"""The README: its links lead somewhere, its settings are accepted, and `make newcomer` finds its blocks."""

import re
from pathlib import Path

import pytest

from tests.docs.runner import accept
from tests.newcomer import Newcomer

ROOT = Path(__file__).parents[2]
LINES_MAX, WORDS_MAX = 120, 800
TEXTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / name).read_text())
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert missing == []


def test_settings_are_accepted() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        accept(block)


def test_readme_has_the_blocks_that_make_newcomer_runs() -> None:
    newcomer = Newcomer.__new__(Newcomer)  # without a clone
    newcomer.readme = (ROOT / "README.md").read_text()
    assert newcomer.commands("Try it")[0].startswith("make demo")
    assert [line.split()[0] for line in newcomer.commands("On your database")] == [
        "python3", "pip", "airy-trio", "airy-trio"
    ]  # fmt: skip
    assert len(newcomer.blocks("On your database", "js")) == 1
    assert len(newcomer.blocks("On your database", "toml")) == 1


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= LINES_MAX
    assert len(text.split()) <= WORDS_MAX


def test_index_links_every_page() -> None:
    docs = ROOT / "docs"
    text = (docs / "index.md").read_text()
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    assert [page for page in pages if page != "index.md" and f"({page})" not in text] == []


def test_make_targets_are_in_help_and_contributing() -> None:
    makefile, contributing = (ROOT / "Makefile").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    for target in phony.split():
        assert re.search(rf"^{target}:.* ## \w", makefile, re.MULTILINE), f"{target}: not in make help"
        assert f"`make {target}" in contributing, f"{target}: not in CONTRIBUTING.md"
