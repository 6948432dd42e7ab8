"""The README: its links lead somewhere, its settings are accepted, and CI runs each of its commands."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import anchors
from tests.docs.runner import accept
from tests.newcomer import SECTION, blocks, commands

ROOT = Path(__file__).parents[2]
LINES_MAX, WORDS_MAX = 120, 800
TEXTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text())
    for target in targets:
        path, _, anchor = target.partition("#")
        if "://" not in path:
            assert (ROOT / path).exists(), target
            assert not anchor or anchor in anchors((ROOT / (path or name)).read_text()), target


def test_settings_are_accepted() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        accept(block)


def test_each_command_of_the_readme_is_run() -> None:
    """``make newcomer`` runs one section and the first command of the other; .ci/run runs the second command."""
    text = (ROOT / "README.md").read_text()
    [[demo, test]] = commands(text, "Try it")
    assert demo.startswith("make demo ")
    assert test.split()[:2] == ["make", "test"]
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert [[line.split()[0] for line in block] for block in commands(text, SECTION)] == [
        ["python3", "pip"], ["python", "airy-trio", "airy-trio", "airy-trio"], ["python"]
    ]  # fmt: skip
    used = [1, *(len(blocks(text, SECTION, language)) for language in ("console", "js", "toml"))]
    assert used == [1, 3, 1, 1]
    assert sum(used) == text.count("\n```") / 2


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
