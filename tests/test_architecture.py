"""Architecture rules that no linter checks (CONTRIBUTING.md gives the reason for each).

The import-linter contracts in pyproject.toml check the imports.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import airy_trio

PACKAGE = Path(airy_trio.__file__).parent
OPEN_NURSERIES = {
    "app/server.py",
    "app/supervisor.py",
    "client/connection.py",  # in `tasks`, for one block: the client's program is not part of the server
    "database/engines.py",  # while several connections are closed at the same time
    "demo/__init__.py",  # the demo is not part of the server
    "database/postgres.py",  # until a socket can be written or read: a Trio task can wait for only one of the two
    "sessions/conversation.py",  # in `unless_gone`, while one request waits
    "sessions/registry.py",
    "testing/store_changes.py",  # the checks of stores are not part of the server
    "testing/store_crashes.py",
    "testing/store_state.py",
    "testing/store_checks.py",
    "verify/__init__.py",
}
NAME_BACK_ENDS = {
    "app/build.py",
    "check/__init__.py",  # which database a read-only feed would read
    "migrate/streams.py",  # the names of the tables in SQL
}
VERBS = {"airy_trio.capture": {"wait", "_read_once"}, "airy_trio.log": {"append", "trim"}}
"""The methods that make a class of a stage a back end: of ``ChangeFeed``, or of ``EventStore``."""
PORTS = {"airy_trio.capture.feed", "airy_trio.log.store"}
SANS_IO_MAY_IMPORT = {
    "attrs",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "re",
    "string",
    "struct",
    "types",
    "typing",
}
SAY_NOTHING = {"base", "common", "core", "handler", "handlers", "helpers", "manager", "misc", "utils"}


@cache
def sources() -> Mapping[str, ast.Module]:
    """Return every source of the package. The first test that needs them parses them, which takes most of a second."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield every module that a source imports, also inside functions; ``from a import b`` gives ``a.b`` too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                origin = module or ""
                if level:
                    parent = package.split(".")[: len(package.split(".")) - level + 1]
                    origin = ".".join([*parent, *([module] if module else [])])
                yield origin
                yield from (f"{origin}.{name.name}" for name in names)
            case _:
                continue


def package_of(source: str) -> str:
    return ".".join(["airy_trio", *source.split("/")[:-1]])


def nurseries(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that open a nursery or name ``open_nursery``, however it was imported."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="open_nursery") | ast.Name(id="open_nursery") | ast.alias(name="open_nursery"):
                yield node.lineno
            case _:
                continue


@cache
def back_ends() -> frozenset[str]:
    """Return the modules with a back end. In a sub-package each module counts, because the parts are private to it."""
    found: set[str] = set()
    for source, tree in sources().items():
        module = f"airy_trio.{source.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        for stage, verbs in VERBS.items():
            within = module.removeprefix(f"{stage}.").split(".")
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
            methods = [{one.name for one in node.body if isinstance(one, ast.AsyncFunctionDef)} for node in classes]
            is_back_end = any(one >= verbs for one in methods)
            if module.startswith(f"{stage}.") and module not in PORTS and (len(within) > 1 or is_back_end):
                found.add(module)
    return frozenset(found)


def back_ends_named(source: str, tree: ast.AST) -> set[str]:
    """Return the back ends that a source imports from outside their own stage."""
    package = package_of(source)
    return {
        name
        for name in imports(tree, package)
        for back_end in back_ends()
        if name == back_end or name.startswith(f"{back_end}.")
        if not package.startswith(back_end.rpartition(".")[0])
    }


def foreign_to_stomp(source: str, tree: ast.AST) -> set[str]:
    return {
        name
        for name in imports(tree, package_of(source))
        if name.partition(".")[0] not in SANS_IO_MAY_IMPORT and not name.startswith("airy_trio.stomp")
    }


def names_of_the_package(tree: ast.AST) -> set[str]:
    """Return what a source imports from the package itself except the version and modules."""
    named = {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module == "airy_trio"
        for name in node.names
    }
    modules = {source.split("/")[0].removesuffix(".py") for source in sources()}
    return named - modules - {"__version__"}


NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
"""Names that are public although they begin with an underscore."""


def private_of_others(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the lines that use an attribute with one underscore of anything but ``self`` or ``cls``, and its name."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name, lineno=line) if (
                name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLES
            ):
                yield line, name
            case _:
                continue


@pytest.mark.slow
def test_no_private_attribute_of_other_objects_is_used() -> None:
    """In particular, the next version of a library may not have its private attributes."""
    used = {source: list(private_of_others(tree)) for source, tree in sources().items()}
    assert {source: lines for source, lines in used.items() if lines} == {}
    assert list(private_of_others(ast.parse("ws._close_reason\nself._x\nself._ws._stream"))) == [
        (1, "_close_reason"),
        (3, "_stream"),
    ]


def test_only_few_modules_open_nurseries() -> None:
    opened = {source: list(nurseries(tree)) for source, tree in sources().items() if source not in OPEN_NURSERIES}
    assert {source: lines for source, lines in opened.items() if lines} == {}


def test_only_app_names_a_back_end() -> None:
    named = {
        source: back_ends_named(source, tree) for source, tree in sources().items() if source not in NAME_BACK_ENDS
    }
    assert {source: names for source, names in named.items() if names} == {}


def test_stomp_imports_neither_io_nor_clocks() -> None:
    sans_io = {source: tree for source, tree in sources().items() if source.startswith("stomp/")}
    foreign = {source: foreign_to_stomp(source, tree) for source, tree in sans_io.items()}
    assert {source: names for source, names in foreign.items() if names} == {}


def test_modules_import_only_the_version_from_the_package() -> None:
    """Its other names are those of higher layers, which the contracts do not see because of their exceptions."""
    found = {source: wrong for source, tree in sources().items() if (wrong := names_of_the_package(tree))}
    assert found == {}


def test_module_names_are_not_generic() -> None:
    assert [source for source in sources() if not SAY_NOTHING.isdisjoint(Path(source).with_suffix("").parts)] == []


def test_every_back_end_is_found() -> None:
    found = {"capture.postgres", "capture.sqlite", "capture.polling", "log.memory", "log.redis.store", "log.sql.sqlite"}
    assert {f"airy_trio.{name}" for name in found} <= back_ends()
    assert not PORTS & back_ends()


def test_rules_find_violations() -> None:
    assert list(nurseries(ast.parse("import trio\nasync with trio.open_nursery() as n: pass"))) == [2]
    assert list(nurseries(ast.parse("from trio import open_nursery as quietly"))) == [1]
    assert foreign_to_stomp("stomp/codec.py", ast.parse("import re\nfrom time import monotonic")) == {
        "time",
        "time.monotonic",
    }
    assert foreign_to_stomp("stomp/codec.py", ast.parse("def f():\n    from ..errors import StartError")) == {
        "airy_trio.errors",
        "airy_trio.errors.StartError",
    }
    assert foreign_to_stomp("stomp/codec.py", ast.parse("from . import frames")) == set()
    assert back_ends_named("cli/serve.py", ast.parse("from airy_trio.log import memory")) == {"airy_trio.log.memory"}
    assert back_ends_named("websocket/session.py", ast.parse("import airy_trio.capture.sqlite.feed")) == {
        "airy_trio.capture.sqlite.feed"
    }
    assert back_ends_named("log/sql/reading.py", ast.parse("from airy_trio.log.sql.store import tables")) == set()
    assert back_ends_named("log/sql.py", ast.parse("from airy_trio.capture.sqlite import X")) != set()
    assert names_of_the_package(ast.parse("from airy_trio import __version__, app, serve")) == {"serve"}


def test_every_source_was_read() -> None:
    assert "stomp/__init__.py" in sources()
    assert sources().keys() >= OPEN_NURSERIES
