"""Write a mapping as a settings file, with the reason for each line as its comment."""

import json
from collections.abc import Iterator, Mapping
from typing import Final

from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import DELETABLE, KINDS, Scalar
from airy_trio.init.columns import Source
from airy_trio.init.proposal import Proposal, Proposals

_HEAD: Final = """\
# Made by `airy-trio init`. Each line has its reason; correct what does not fit.
# `airy-trio check` reports what is wrong. All other settings have their defaults; the reference lists them.
"""
_DELETES: Final = """
# Send a deletion if a message is deleted or a `where` below begins to exclude it, so that it disappears from pages.
[events]
deletes = true
"""
_TAIL: Final = """
# The server listens on 127.0.0.1:8080 and admits every client. To change that:
#[listener]
#host = "0.0.0.0"
#allowed_origins = ["https://chat.example.org"]
#[auth]
#mode = "tokens"
#tokens = { agent = "${AGENT_TOKEN}" }
"""
_WHERE_WHY: Final = "# Excludes messages that clients should not see, judging by the names of these columns.\n"
_CONTENT_WHY: Final = "# What people write is sent as text, even if it looks like JSON.\n"


def text_of(url: str, proposals: Proposals) -> str:
    """Return the settings file. ``url``: as the file refers to it."""
    parts = [_HEAD, f"\n[database]\nurl = {_toml(url)}\n"]
    if any(proposals[kind].where for kind in KINDS if kind in DELETABLE):
        parts.append(_DELETES)
    parts += (_section(kind, proposals[kind]) for kind in KINDS)
    return "".join([*parts, _TAIL])


def lines_of(proposal: Proposal) -> Iterator[str]:
    """Yield a mapping for people: the table, and each field with its column or constant and the reason."""
    table = "no table" if proposal.table is None else f'table "{proposal.table.label}"'
    yield f"{proposal.kind:<9} {table}: {proposal.why}"
    for name, source in proposal.sources.items():
        origin = _toml(source.constant) if source.column is None else source.column
        yield f"  {name:<18} {origin:<24} {_why(source)}"
    if proposal.where:
        yield f"  {'where':<18} {proposal.where}"


def _section(kind: Kind, proposal: Proposal) -> str:
    table = proposal.table
    lines = [f"\n[database.tables.{kind}]\n# {printable(proposal.why)}\n"]
    if table is None:
        return "".join([*lines, 'name = ""\n'])
    if table.label != kind:
        is_plain = table.label.count(".") == (0 if table.visible else 1)  # a text is split at its first dot
        pair = f"[{_toml(table.schema or 'main')}, {_toml(table.name)}]"
        lines.append(f"name = {_toml(table.label) if is_plain else pair}\n")
    if proposal.where:
        lines.append(f"{_WHERE_WHY}where = {_toml(proposal.where)}\n")
    if proposal.content != "auto":
        lines.append(f"{_CONTENT_WHY}content = {_toml(proposal.content)}\n")
    sources = proposal.sources.items()
    columns = {name: (_toml(one.column), _why(one)) for name, one in sources if one.column not in (None, name)}
    constants = {name: (_toml(one.constant), one.why) for name, one in sources if one.column is None}
    values = {name: (_inline(one.values), "column = event") for name, one in sources if one.values}
    for part, settings in (("columns", columns), ("constants", constants), ("values", values)):
        lines += _part(f"database.tables.{kind}.{part}", settings)
    return "".join(lines)


def _part(path: str, settings: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    if settings:
        yield f"\n[{path}]\n"
        width = max(len(f"{name} = {value}") for name, (value, _) in settings.items())
        for name, (value, why) in settings.items():
            yield f"{f'{name} = {value}':<{min(width, 60)}}   # {printable(why)}\n"


def _why(source: Source) -> str:
    meanings = ", ".join(f"{theirs} = {_toml(ours)}" for theirs, ours in source.values.items())
    return f"{source.why}: {meanings}" if meanings else source.why


def _inline(values: Mapping[str, Scalar]) -> str:
    return f"{{ {', '.join(f'{_toml(theirs)} = {_toml(ours)}' for theirs, ours in values.items())} }}"


def printable(text: str) -> str:
    """Return a text without what would end its line or control a terminal: names and values are the database's."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _toml(value: Scalar | None) -> str:
    """Return a value as TOML writes it, which for these types is as JSON does."""
    return json.dumps(value, ensure_ascii=False)
