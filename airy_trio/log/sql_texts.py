"""Any text in a column, though Postgres takes no NUL: an id of an SQLite application may hold one, or a destination.

NUL is written as U+0001 and ``0``, U+0001 as itself twice; a text without the two, which nearly every one is, stands as
it is. Equal texts stay equal, so that columns can be compared with what ``written`` gives.
"""

import re
from typing import Final, TypeVar

_NUL: Final = "\0"
_MARK: Final = "\1"
_MARKED: Final = re.compile(f"{_MARK}([{_MARK}0])")

Text = TypeVar("Text", str, str | None)


def written(text: Text) -> Text:
    """The text as it stands in the column."""
    if not text or (_NUL not in text and _MARK not in text):
        return text
    return text.replace(_MARK, _MARK * 2).replace(_NUL, f"{_MARK}0")


def read(text: Text) -> Text:
    """The text that ``written`` was given."""
    if not text or _MARK not in text:
        return text
    return _MARKED.sub(lambda found: _MARK if found[1] == _MARK else _NUL, text)
