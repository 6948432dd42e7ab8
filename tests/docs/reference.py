"""The pages of the reference that are made from the program itself.

python -m tests.docs.reference            names the pages that are not current, exit code 1 where there are any
python -m tests.docs.reference --write    writes them
"""

import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import click

from airy_trio.cli import airy_trio as command_line
from airy_trio.delivery import disconnects
from airy_trio.delivery.disconnects import DisconnectReason
from airy_trio.options import NotAllowedError, Validator
from airy_trio.settings import Document
from airy_trio.settings.cross_checks import CHECKS, REQUIRED
from airy_trio.stomp import errors
from airy_trio.stomp.errors import Fault
from tests.cli.test_failures import ARGUMENTS, CASES
from tests.docs import api
from tests.docs.figures import families

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
EXAMPLE = ROOT / "config" / "example.toml"
NOTICE = "<!-- Made by `make reference` from the program itself: change it there. -->\n\n"
IMPOSSIBLE: Final = ("\0", object(), ["\0"], {"\0": "\0"})
"""What no option allows, of several kinds: its validator then says what it does."""
COLUMNS: Final = 80


def settings() -> str:
    """The page of all settings: their reasons from ``config/example.toml``, bounds and defaults from the options."""
    lines = [
        "# Settings",
        "",
        "One TOML file, given by `--config`. A key that is not here is refused, and all faults are told at once.",
        "`${NAME}` and `${NAME:-default}` in a text are taken from the environment. The same as a file to start from:",
        "[config/example.toml](#the-file).",
        "",
    ]
    for path, cls in _sections(Document):
        lines += [f"## [{path}]", "", *_section(path, cls)]
    lines += ["## The file", "", "```toml", EXAMPLE.read_text().rstrip("\n"), "```", ""]
    return "\n".join(lines)


def _sections(cls: type, path: str = "") -> Iterator[tuple[str, type]]:
    attrs.resolve_types(cls)
    for option in attrs.fields(cls):
        if option.type is not None and attrs.has(option.type):
            below = f"{path}.{option.name}" if path else option.name
            inner = attrs.resolve_types(option.type)
            if not all(attrs.has(field.type) for field in attrs.fields(inner)):
                yield below, inner
            yield from _sections(inner, below)


def _section(path: str, cls: type) -> Iterator[str]:
    options = {option.name: option for option in attrs.fields(cls) if not attrs.has(option.type)}
    told = set()
    for reason, names in _groups(path):
        yield "| setting | default | what may stand there |"
        yield "|---|---|---|"
        for name in names:
            told.add(name)
            yield f"| `{name}` | {_default(options[name])} | {_allowed(cls, options[name])} |"
        yield ""
        yield f"{reason}\n" if reason else ""
    missing = options.keys() - told
    if missing:
        message = f"[{path}] {sorted(missing)}: not in config/example.toml"
        raise AssertionError(message)


def _groups(section: str) -> Iterator[tuple[str, list[str]]]:
    """Of a section of the example: comments, each with the names of the settings that it stands above.

    The three lesser tables of a mapping have their reasons at the first.
    """
    text = EXAMPLE.read_text()
    body = re.split(r"^\[", text.partition(f"\n[{section}]\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    body = re.sub(r"\n\n#[^\n]*(\n#[^\n]*)*\n*\Z", "\n", body)  # what stands above the next section
    reason: list[str] = []
    names: list[str] = []
    for line in body.splitlines():
        if line.startswith("# "):
            if names:
                yield _paragraph(reason), names
                reason, names = [], []
            reason.append(line.removeprefix("# "))
        elif found := re.match(r"#?(\w+) = ", line):
            names.append(found[1])
    if names:
        yield _paragraph(reason), names


def _paragraph(lines: list[str]) -> str:
    """As Markdown: what is indented in the comment is code."""
    text = "\n".join(f"\n    {line.strip()}\n" if line.startswith("  ") else line for line in lines)
    return text.replace("<", "&lt;").replace("*", "\\*")


def _default(option: "attrs.Attribute[Any]") -> str:
    if option.default is attrs.NOTHING:
        return "none: it must be given"
    value = option.default.factory() if isinstance(option.default, attrs.Factory) else option.default  # type: ignore[arg-type, union-attr]
    return "none" if value is None else f"`{json.dumps(value)}`"


def _allowed(cls: type, option: "attrs.Attribute[Any]") -> str:
    if typing.get_origin(option.type) is typing.Literal:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in typing.get_args(option.type))
    keys = [(base, option.name) for base in cls.__mro__]
    words = next((REQUIRED[key] for key in keys if key in REQUIRED), None)
    for validator in (option.validator, *(CHECKS[key] for key in keys if key in CHECKS)):
        if words is None and validator is not None:
            words = _words(validator, option)
    return (words or _kind(option.type)).replace("|", "\\|")


def _words(validator: Validator, option: "attrs.Attribute[Any]") -> str | None:
    for value in IMPOSSIBLE:
        try:
            validator(None, option, value)
        except NotAllowedError as error:
            return error.allowed
        except (TypeError, AttributeError):  # not even of the kind that it looks at
            continue
    return None


def _kind(kind: object) -> str:
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, types.UnionType):
        return "a text or a pair of texts"
    names: Mapping[object, str] = {
        str: "a text", bool: "`true` or `false`", int: "an integer", float: "a number", list: "a list of texts",
    }  # fmt: skip
    return names.get(origin, "a table of TOML")


def commands() -> str:
    """The page of the command line: the help of every command, as a terminal of 80 columns shows it."""
    lines = [
        "# Command line",
        "",
        "Exit code 0: done; 1: database, mapping, triggers, store or port; 2: command line or settings. Errors are",
        "sentences on stderr.",
        "",
    ]
    for name, command in (("", command_line), *sorted(command_line.commands.items())):
        program = f"airy-trio {name}".strip()
        shown = {**command_line.context_settings, "terminal_width": COLUMNS, "color": False}
        context = click.Context(command, info_name=program, **shown)
        lines += [f"## {program}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join([*lines, *_failures()])


def _failures() -> Iterator[str]:
    """What each failure looks like, as the tests have it."""
    yield "## When a command fails"
    yield ""
    yield "One sentence for each fault, after `airy-trio: `. *serving* is `airy-trio --config FILE` itself."
    yield ""
    yield "| what is wrong | which commands | exit code | what they say has |"
    yield "|---|---|---|---|"
    for case in CASES:
        told = ", ".join(f"`{command}`" if command else "*serving*" for command in case.commands)
        which = "all that take a file" if len(case.commands) == len(ARGUMENTS) else told
        yield f"| {case.name} | {which} | {case.code} | `{case.words.strip()}` |"
    yield ""


def metrics() -> str:
    """The page of the metrics, from the registry of a server."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` on the admin port, in the format of Prometheus. Each server tells its own figures; with",
        "`[listener] workers` each worker does, on a port of its own.",
        "",
        "| metric | kind | labels | what it is |",
        "|---|---|---|---|",
    ]
    for family in families():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.words} |")
    lines += [
        "",
        "Beside them stand the figures of the process itself (`process_resident_memory_bytes`, `process_open_fds` and",
        "others). Which of them deserve an alert: [Operate](../how-to/operate.md#alerts).",
        "",
    ]
    return "\n".join(lines)


def goodbyes() -> str:
    """The page of how connections end: the catalogue of farewells, and that of what STOMP itself forbids."""
    lines = [
        "# Goodbyes",
        "",
        "How a connection ends. Where there is a token, it is the `message` header of a STOMP ERROR frame, whose body",
        "says the same in words; the WebSocket is closed with the code after it.",
        "",
        "| | token | close code | come back? | |",
        "|---|---|---|---|---|",
    ]
    for row in _rows():
        token = f"`{row.token}`" if row.token else ""
        lines.append(f"| {row.name} | {token} | {row.close_code or ''} | {row.reconnect.value} | {row.prose} |")
    lines += [
        "",
        "Whoever takes nothing for `[listener] send_timeout_s` (*too slow*) cannot be told anything; *gone* left by",
        "itself; *refused* was answered in HTTP and never became a WebSocket.",
        "",
        "## What a client can do wrong in STOMP",
        "",
        "| token | |",
        "|---|---|",
        *(f"| `{fault.token}` | {fault.prose} |" for fault in _faults()),
        "",
    ]
    return "\n".join(lines)


def _rows() -> Iterator[DisconnectReason]:
    """The catalogue, and its variants, in the order of their module."""
    yield from (row for row in vars(disconnects).values() if isinstance(row, DisconnectReason))


def _faults() -> list[Fault]:
    return [fault for fault in vars(errors).values() if isinstance(fault, Fault)]


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "settings.md": settings,
    "command-line.md": commands,
    "metrics.md": metrics,
    "goodbyes.md": goodbyes,
    "python.md": api.page,
}


def made(name: str) -> str:
    """The page as it should stand in the folder."""
    return NOTICE + PAGES[name]()


def main() -> None:
    """Compare the pages, or write them."""
    write = sys.argv[1:] == ["--write"]
    stale = [name for name in PAGES if not (FOLDER / name).exists() or (FOLDER / name).read_text() != made(name)]
    for name in stale:
        if write:
            (FOLDER / name).write_text(made(name))
        sys.stdout.write(f"docs/reference/{name}: {'written' if write else 'not current, run `make reference`'}\n")
    sys.exit(1 if stale and not write else 0)


if __name__ == "__main__":
    main()
