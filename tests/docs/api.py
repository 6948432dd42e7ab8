"""The page of the Python API: what is published, with the words that stand beside it in the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[2] / "airy_trio"
PUBLISHED: Final = (
    ("Serve", "airy_trio", "app/serving.py", ("serve", "Address")),
    ("Settings", "airy_trio.settings", "settings/__init__.py", ("load", "parse")),
    ("Migrations", "airy_trio.migrate", "migrate/__init__.py", ("migrate", "Migrated", "preview", "remove")),
    (
        "Errors",
        "airy_trio.errors",
        "errors.py",
        ("AiryTrioError", "FaultsError", "SettingsError", "StartError", "MappingError", "Unavailable"),
    ),
    (
        "A STOMP client",
        "airy_trio.testing.client",
        "testing/client.py testing/websocket.py",
        ("connect", "StompClient", "WebSocketClient", "Rejected", "Closed", "BrokenPromiseError"),
    ),
    (
        "Event stores",
        "airy_trio.testing.event_store",
        "testing/event_store.py",
        ("check_event_store", "broken_promises"),
    ),
)
"""Headings, where a program imports from, the files, and the names."""
_NAMES: Final = frozenset(name for *_, names in PUBLISHED for name in names)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def page() -> str:
    """The page, as Markdown."""
    lines = [
        "# Python",
        "",
        "What a program of yours may use; all of it is typed. How the parts go together:",
        "[Inside your own Trio program](../how-to/embed.md). Whatever is not here may change with any release.",
        "",
    ]
    for heading, module, files, names in PUBLISHED:
        lines += [f"## {heading}", "", f"`{module}`", ""]
        texts = [(PACKAGE / file).read_text() for file in files.split()]
        found = {node.name: node for text in texts for node in _definitions(ast.parse(text))}
        for name in names:
            lines += _told(found[name])
    return "\n".join(lines)


def _definitions(node: ast.AST) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child


def _told(node: Definition) -> Iterator[str]:
    yield f"### {node.name}"
    yield ""
    if isinstance(node, ast.ClassDef):
        yield from _prose(node)
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in _NAMES]
        yield from [line for base in bases for line in (f"Base: `{base}`.", "")]
        fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign) and _is_field(one)]
        if fields:
            yield from ["```python", *fields, "```", ""]
        for method in _definitions(node):
            if not method.name.startswith("_"):
                yield from ["```python", _signature(method), "```", "", *_prose(method)]
    else:
        yield from ["```python", _signature(node), "```", "", *_prose(node)]


def _is_field(node: ast.AnnAssign) -> bool:
    name, kind = ast.unparse(node.target), ast.unparse(node.annotation)
    return not name.startswith("_") and not kind.startswith(("ClassVar", "Final"))


def _signature(node: Definition) -> str:
    """On one line, or with a line for each argument; without what Trio passes by itself."""
    assert not isinstance(node, ast.ClassDef)
    wanted = [(one, default) for one, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    node.args.kwonlyargs = [one for one, _ in wanted if one.arg != "task_status"]
    node.args.kw_defaults = [default for one, default in wanted if one.arg != "task_status"]
    node.args.args = [one for one in node.args.args if one.arg != "self"]
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    if any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
        return f"{node.name}: {ast.unparse(node.returns) if node.returns else ''}"
    arguments = re.sub(r"(\w+: [^,=]+)=", r"\1 = ", ast.unparse(node.args))
    line = f"{prefix} {node.name}({arguments}){returns}"
    if len(line) <= 88:
        return line
    apart = re.sub(r", (?=\w+:|\*,)", ",\n    ", arguments)
    return f"{prefix} {node.name}(\n    {apart},\n){returns}"


def _prose(node: Definition) -> list[str]:
    text = ast.get_docstring(node) or ""
    return [text.replace("``", "`"), ""]
