"""The pages of the documentation, and what the comments above their blocks say shall happen with each.

Above a block stands one of these, as an HTML comment that no reader sees::

    run                     a shell runs it in the page's folder, and it ends with 0
    run: CODE               the same, and it ends with this exit code
    sql                     it is run in the database of DATABASE_URL, as a superuser; its rows are printed
    start: NAME, WORDS      the same in the background, until it has said WORDS
    file: NAME              it is a file of the page's folder
    shows                   what the last `run` or `sql` printed: these lines, in this order
    shows: NAME             the same of what was started as NAME, which may still have to come
    settings                it is (a part of) a settings file, which the program accepts
    postgres                it sets DATABASE_URL, to that of a Postgres for the test
    postgres: ROLE          the same, of this role
    not run: REASON         nothing

``stop: NAME`` stands alone: what was started is ended, as by Ctrl-C.
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
"""Pages that the program makes (``reference``): nothing in them is for a reader to type."""
KINDS: Final = ("run", "sql", "start", "file", "shows", "settings", "postgres", "stop", "not run")
_STEP: Final = re.compile(
    r"^[ ]*<!-- (?P<mark>[^\n]*?) -->$|^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@frozen
class Step:
    """One thing to do. ``words``: what follows the kind; ``text``: the block, empty for ``stop``."""

    kind: str
    words: str
    language: str
    text: str
    line: int


def pages() -> list[str]:
    """The names of all pages that people wrote."""
    found = (path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.md"))
    return sorted(name for name in found if name not in MADE)


def steps(text: str) -> Iterator[Step]:
    """The steps of a page. Raises ``AssertionError`` for a block without a mark, or with one that is none."""
    kind = words = ""
    for found in _STEP.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["mark"] is not None:
            kind, _, words = (part.strip() for part in found["mark"].partition(":"))
            assert kind in KINDS, f"line {line}: {found['mark']!r} is no mark"
            if kind == "stop":
                yield Step(kind, words, "", "", line)
                kind = ""
            continue
        assert kind, f"line {line}: nothing says what shall happen with this block"
        if kind != "not run":
            yield Step(kind, words, found["language"], _dedented(found["text"], found["indent"]), line)
        else:
            assert words, f"line {line}: it is not run for no reason"
        kind = ""


def _dedented(text: str, indent: str) -> str:
    return re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
