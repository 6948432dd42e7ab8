"""The page of the Python API: the published names, with their signatures and docstrings from the source."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[2] / "airy_trio"
PUBLISHED: Final = (
    ("Serve", "airy_trio", "app/server.py sessions/listener.py", ("serve", "Address")),
    ("Settings", "airy_trio.settings", "settings/__init__.py", ("load", "parse")),
    ("Migrations", "airy_trio.migrate", "migrate/__init__.py", ("migrate", "Migrated", "preview", "remove")),
    (
        "Errors",
        "airy_trio.errors",
        "errors.py",
        ("AiryTrioError", "FaultsError", "SettingsError", "StartError", "MappingError", "Unavailable"),
    ),
    (
        "A client",
        "airy_trio.client",
        "client/__init__.py client/connection.py",
        (
            "open", "Follower", "Events", "Event", "Reset", "PositionStore", "FilePosition", "Token",
            "ClientError", "Refused", "BadAnswer",
        ),
    ),
    (
        "A STOMP client for tests",
        "airy_trio.testing.client",
        "testing/client.py",
        ("connect", "StompClient", "WebSocketClient", "Rejected", "Closed", "BrokenPromiseError"),
    ),
    (
        "Event stores",
        "airy_trio.stores",
        "log/store.py events/destinations.py",
        (
            "EventStore", "NewEvent", "StoredEvent", "StateChange", "StoredState", "StateAt", "Bounds", "Position",
            "Claim", "Acknowledgement", "OpenEventStore",
            "Destination", "Everything", "OfType", "OfChannel", "OfConversation", "Within", "covers",
            "stored_after", "up_to_bytes", "is_all", "new_epoch",
            "StoreUnavailable", "StoreReplaced", "StaleAppend", "PositionExpired",
        ),
    ),
    (
        "Check an event store",
        "airy_trio.testing.event_store",
        "testing/event_store.py testing/store_checks.py testing/store_crashes.py",
        (
            "check_event_store", "broken_promises", "write_batches", "check_whole_batches", "MakePlace", "OpenStore",
            "BrokenStoreError",
        ),
    ),
)  # fmt: skip
"""For each section: its heading, the module that programs import from, the files with the definitions, the names."""
INTRODUCED: Final = {"airy_trio.stores": "stores.py"}
"""Modules whose docstring is part of the page, and their files."""
_NAMES: Final = frozenset(name for *_, names in PUBLISHED for name in names)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Found = Definition | tuple[ast.Assign, str]
"""A definition, or an alias with the text below it."""


def page() -> str:
    """Return the page as Markdown."""
    lines = [
        "# Python",
        "",
        "The public Python interface; all of it is typed. How to use it together:",
        "[Inside your own Trio program](../how-to/embed.md). Other names may change in any release.",
        "",
    ]
    for heading, module, files, names in PUBLISHED:
        lines += [f"## {heading}", "", f"`{module}`", ""]
        if module in INTRODUCED:
            lines += _prose(ast.parse((PACKAGE / INTRODUCED[module]).read_text()))
        trees = [ast.parse((PACKAGE / file).read_text()) for file in files.split()]
        found: dict[str, Found] = {node.name: node for tree in trees for node in _definitions(tree)}
        found |= {name: alias for tree in trees for name, alias in _aliases(tree)}
        for name in names:
            lines += _described(name, found[name])
    return "\n".join(lines)


def _definitions(node: ast.AST) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child


def _aliases(tree: ast.Module) -> Iterator[tuple[str, tuple[ast.Assign, str]]]:
    """Find the type aliases of a module that are followed by a docstring."""
    for node, below in pairwise(tree.body):
        match node, below:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, (node, text)
            case _:
                continue


def _described(name: str, node: Found) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if isinstance(node, tuple):
        yield from ["```python", ast.unparse(node[0]), "```", "", node[1].replace("``", "`"), ""]
    elif isinstance(node, ast.ClassDef):
        yield from _prose(node)
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in _NAMES]
        yield from [line for base in bases for line in (f"Base: `{base}`.", "")]
        found = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign) and _is_field(one)]
        fields = [one.replace("''", '""') for one in found]  # as the formatter writes it
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
    """Return the signature on one line, or one line per argument; without ``self`` and Trio's ``task_status``."""
    assert not isinstance(node, ast.ClassDef)
    wanted = [(one, default) for one, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    node.args.kwonlyargs = [one for one, _ in wanted if one.arg != "task_status"]
    node.args.kw_defaults = [default for one, default in wanted if one.arg != "task_status"]
    node.args.args = [one for one in node.args.args if one.arg not in {"self", "cls"}]
    decorators = {one.id for one in node.decorator_list if isinstance(one, ast.Name)}
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    if "classmethod" in decorators:
        prefix = f"@classmethod\n{prefix}"
    quoted = isinstance(node.returns, ast.Constant) and isinstance(node.returns.value, str)
    returned = "" if node.returns is None else ast.unparse(node.returns).strip("'" if quoted else "")
    returns = f" -> {returned}" if returned else ""
    if "property" in decorators:
        return f"{node.name}: {returned}"
    arguments = re.sub(r"(\w+: [^,=]+)=", r"\1 = ", ast.unparse(node.args))
    line = f"{prefix} {node.name}({arguments}){returns}"
    if len(line) <= 88:
        return line
    apart = re.sub(r", (?=\w+:|\*,)", ",\n    ", arguments)
    return f"{prefix} {node.name}(\n    {apart},\n){returns}"


def _prose(node: Definition | ast.Module) -> list[str]:
    text = ast.get_docstring(node) or ""
    return [text.replace("``", "`"), ""]
