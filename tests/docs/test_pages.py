"""Every page of the documentation is followed: its files are written, its commands run, its settings read.

``make reference`` generates the other pages, and tests/cli runs the examples of the command line's help.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.docs.pages import FOLDER, ROOT, Step, pages, steps
from tests.docs.runner import follow

PAGE_TIMEOUT_S = 100.0
NOT_RUN: Final = {("explanation/architecture.md", "text"): "a diagram of the task tree"}
"""Blocks that no test reads, by page and language."""
FILES: Final = {
    ("how-to/event-streams.md", "kept.html"): "test_load_then_live.py",
    ("how-to/event-streams.md", "tags.html"): "test_load_then_live.py",
    ("how-to/load-then-live.md", "current.html"): "test_load_then_live.py",
    ("how-to/load-then-live.md", "load.html"): "test_load_then_live.py",
    ("how-to/load-then-live.md", "resume.html"): "test_load_then_live.py",
    ("how-to/react.md", "Tags.jsx"): "test_react.py",
    ("how-to/react.md", "use-stomp.js"): "test_react.py",
    ("how-to/resume.md", "inbox.mjs"): "test_resume.py",
}
"""Programs that no command of their page runs, and the test here that runs them."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", pages())
async def test_commands_of_a_page_work(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = (FOLDER / page).read_text()
    if "curl " in text and shutil.which("curl") is None:
        pytest.skip("needs curl")
    with trio.fail_after(PAGE_TIMEOUT_S):
        await follow(page, tmp_path, lambda: str(request.getfixturevalue("postgres_database")))


def all_steps() -> Iterator[tuple[str, Step]]:
    for page in pages():
        for step in steps((FOLDER / page).read_text()):
            yield page, step


def test_blocks_that_no_test_reads_are_listed() -> None:
    """Extend the list only if a block can neither be run nor used by a test (``test: FILE``)."""
    found = {(page, step.language): step.words for page, step in all_steps() if step.kind == "not run"}
    assert found == NOT_RUN


def test_tests_that_a_page_names_use_it() -> None:
    named = {(page, step.words) for page, step in all_steps() if step.kind == "test"}
    assert named
    assert [(page, file) for page, file in named if f'"{page}"' not in (ROOT / "tests" / file).read_text()] == []


def test_every_file_of_a_page_is_used() -> None:
    unused = set()
    for page in pages():
        done = list(steps((FOLDER / page).read_text()))
        for number, step in enumerate(done):
            later = " ".join(one.text for one in done[number + 1 :] if one.kind in {"run", "start"})
            later += " ".join(re.findall(r"^(?:from|import) .*", "".join(one.text for one in done), re.MULTILINE))
            name = step.words.removesuffix(".py")  # other programs import a module
            if step.kind == "file" and name not in later:
                unused.add((page, step.words))
    assert unused == {*FILES}
    for (page, name), test in FILES.items():
        text = (ROOT / "tests" / "docs" / test).read_text()
        assert f'"{page}"' in text
        assert f'"{name}"' in text
