"""The pages of the documentation, and the comments above their blocks, which define how the tests treat each block.

Above each block is one of these marks, as an HTML comment, which readers do not see::

    run                     a shell runs it in the page's folder; the exit code is 0
    run: CODE               the same with this exit code
    sql                     it is run in the database of DATABASE_URL, as a superuser; its rows are printed
    start: NAME, WORDS      a shell runs it in the background; wait until it has printed WORDS
    file: NAME              it is a file in the page's folder
    shows                   the last `run` or `sql` printed these lines, in this order
    shows: NAME             the program that was started as NAME prints these lines, in this order
    settings                it is (a part of) a settings file, which the program accepts
    postgres                it sets DATABASE_URL; the test replaces the URL by that of a Postgres for the test
    postgres: ROLE          the same for this role
    test: FILE              this file in tests/ takes the block from the page and uses it
    not run: REASON         the tests ignore it; test_pages.py lists these blocks

``stop: NAME`` needs no block: it stops the program as Ctrl-C does.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs"
MADE: Final = (
    "reference/settings.md",
    "reference/command-line.md",
    "reference/metrics.md",
    "reference/disconnects.md",
    "reference/python.md",
)
"""Pages that the program generates (``reference``). They contain nothing that a reader types."""
KINDS: Final = ("run", "sql", "start", "file", "shows", "settings", "postgres", "stop", "test", "not run")
REASONED: Final = ("test", "not run")
_STEP: Final = re.compile(
    r"^[ ]*<!-- (?P<mark>[^\n]*?) -->$|^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@frozen
class Step:
    """One step. ``words``: the text after the kind. ``text``: the block; empty for ``stop``."""

    kind: str
    words: str
    language: str
    text: str
    line: int


def pages() -> list[str]:
    """Return the names of all pages that are not generated."""
    found = (path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.md"))
    return sorted(name for name in found if name not in MADE)


def steps(text: str) -> Iterator[Step]:
    """Yield the steps of a page. Raises ``AssertionError`` for a block without a mark, or with an invalid one."""
    kind = words = ""
    for found in _STEP.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["mark"] is not None:
            kind, _, words = (part.strip() for part in found["mark"].partition(":"))
            assert kind in KINDS, f"line {line}: {found['mark']!r} is not a mark"
            if kind == "stop":
                yield Step(kind, words, "", "", line)
                kind = ""
            continue
        assert kind, f"line {line}: no mark above this block"
        assert words or kind not in REASONED, f"line {line}: {kind!r} needs a reason, or a file"
        yield Step(kind, words, found["language"], _dedented(found["text"], found["indent"]), line)
        kind = ""


def parts(page: str, language: str) -> list[str]:
    """Return the blocks of a page in a language that a test uses (``test: FILE``)."""
    found = steps((FOLDER / page).read_text())
    return [step.text for step in found if (step.kind, step.language) == ("test", language)]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a text, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _dedented(text: str, indent: str) -> str:
    return re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
