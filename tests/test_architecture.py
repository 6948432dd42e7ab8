"""Architecture rules that no linter checks (CONTRIBUTING.md gives the reason for each).

The import-linter contracts in pyproject.toml check the imports.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
from attrs import frozen

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
    "sessions/session.py",
    "testing/store_changes.py",  # the checks of stores are not part of the server
    "testing/store_crashes.py",
    "testing/store_reads.py",
    "testing/store_checks.py",
    "verify/__init__.py",
}
NAME_BACK_ENDS = {
    "app/build.py",
    "check/__init__.py",  # which database a read-only feed would read
    "migrate/__init__.py",  # the names of the tables in SQL
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


@frozen
class Source:
    """What the rules check in one file. No syntax tree is kept: each full garbage collection would walk it."""

    imported: frozenset[str]
    nurseries: Sequence[int]
    methods: Sequence[set[str]]
    """The coroutines of each class."""

    @classmethod
    def of(cls, text: str, name: str = "x.py") -> "Source":
        tree = ast.parse(text)
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        nodes = list(ast.walk(tree))
        return cls(
            frozenset(imports(nodes, package_of(name))),
            list(nurseries(nodes)),
            [{one.name for one in node.body if isinstance(one, ast.AsyncFunctionDef)} for node in classes],
        )


@cache
def sources() -> Mapping[str, Source]:
    """Return the parts of every source of the package that the rules check. The first call takes half a second."""
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {name: Source.of(path.read_text(), name) for name, path in paths.items()}


def imports(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    """Yield every module that a source imports, also inside functions; ``from a import b`` gives ``a.b`` too."""
    for node in nodes:
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


def nurseries(nodes: Iterable[ast.AST]) -> Iterator[int]:
    """Yield the lines that open a nursery or name ``open_nursery``, however it was imported."""
    for node in nodes:
        match node:
            case ast.Attribute(attr="open_nursery") | ast.Name(id="open_nursery") | ast.alias(name="open_nursery"):
                yield node.lineno
            case _:
                continue


@cache
def back_ends() -> frozenset[str]:
    """Return the modules with a back end. In a sub-package each module counts, because the parts are private to it."""
    found: set[str] = set()
    for name, source in sources().items():
        module = f"airy_trio.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        for stage, verbs in VERBS.items():
            within = module.removeprefix(f"{stage}.").split(".")
            is_back_end = any(one >= verbs for one in source.methods)
            if module.startswith(f"{stage}.") and module not in PORTS and (len(within) > 1 or is_back_end):
                found.add(module)
    return frozenset(found)


def back_ends_named(source: str, imported: frozenset[str]) -> set[str]:
    """Return the back ends that a source imports from outside their own stage."""
    package = package_of(source)
    return {
        name
        for name in imported
        for back_end in back_ends()
        if name == back_end or name.startswith(f"{back_end}.")
        if not package.startswith(back_end.rpartition(".")[0])
    }


def foreign_to_stomp(imported: frozenset[str]) -> set[str]:
    return {
        name
        for name in imported
        if name.partition(".")[0] not in SANS_IO_MAY_IMPORT and not name.startswith("airy_trio.stomp")
    }


def names_of_the_package(imported: frozenset[str]) -> set[str]:
    """Return what a source imports from the package itself except the version and modules."""
    named = {name.removeprefix("airy_trio.") for name in imported if name.startswith("airy_trio.")}
    modules = {source.split("/")[0].removesuffix(".py") for source in sources()}
    return {name for name in named if "." not in name} - modules - {"__version__"}


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
    used = {path: list(private_of_others(ast.parse(path.read_text()))) for path in PACKAGE.rglob("*.py")}
    assert {path: lines for path, lines in used.items() if lines} == {}
    assert list(private_of_others(ast.parse("ws._close_reason\nself._x\nself._ws._stream"))) == [
        (1, "_close_reason"),
        (3, "_stream"),
    ]


def test_only_few_modules_open_nurseries() -> None:
    opened = {name: source.nurseries for name, source in sources().items() if name not in OPEN_NURSERIES}
    assert {name: lines for name, lines in opened.items() if lines} == {}


def test_only_app_names_a_back_end() -> None:
    others = {name: source for name, source in sources().items() if name not in NAME_BACK_ENDS}
    named = {name: back_ends_named(name, source.imported) for name, source in others.items()}
    assert {name: names for name, names in named.items() if names} == {}


def test_stomp_imports_neither_io_nor_clocks() -> None:
    sans_io = {name: source for name, source in sources().items() if name.startswith("stomp/")}
    foreign = {name: foreign_to_stomp(source.imported) for name, source in sans_io.items()}
    assert {name: names for name, names in foreign.items() if names} == {}


def test_modules_import_only_the_version_from_the_package() -> None:
    """Its other names are those of higher layers, which the contracts do not see because of their exceptions."""
    found = {name: wrong for name, source in sources().items() if (wrong := names_of_the_package(source.imported))}
    assert found == {}


def test_module_names_are_not_generic() -> None:
    assert [source for source in sources() if not SAY_NOTHING.isdisjoint(Path(source).with_suffix("").parts)] == []


def test_every_back_end_is_found() -> None:
    found = {"capture.postgres", "capture.sqlite", "capture.polling", "log.memory", "log.redis.store", "log.sql.sqlite"}
    assert {f"airy_trio.{name}" for name in found} <= back_ends()
    assert not PORTS & back_ends()


def test_rules_find_violations() -> None:
    assert Source.of("import trio\nasync with trio.open_nursery() as n: pass").nurseries == [2]
    assert Source.of("from trio import open_nursery as quietly").nurseries == [1]
    assert foreign_to_stomp(imported("stomp/codec.py", "import re\nfrom time import monotonic")) == {
        "time",
        "time.monotonic",
    }
    assert foreign_to_stomp(imported("stomp/codec.py", "def f():\n    from ..errors import StartError")) == {
        "airy_trio.errors",
        "airy_trio.errors.StartError",
    }
    assert foreign_to_stomp(imported("stomp/codec.py", "from . import frames")) == set()
    for source, text, found in (
        ("cli/serve.py", "from airy_trio.log import memory", {"airy_trio.log.memory"}),
        ("websocket/session.py", "import airy_trio.capture.sqlite.feed", {"airy_trio.capture.sqlite.feed"}),
        ("log/sql/reading.py", "from airy_trio.log.sql.store import tables", set()),
    ):
        assert back_ends_named(source, imported(source, text)) == found
    assert back_ends_named("log/sql.py", imported("log/sql.py", "from airy_trio.capture.sqlite import X"))
    assert names_of_the_package(imported("log/x.py", "from airy_trio import __version__, app, serve")) == {"serve"}


def imported(source: str, text: str) -> frozenset[str]:
    return Source.of(text, source).imported


def test_every_source_was_read() -> None:
    assert "stomp/__init__.py" in sources()
    assert sources().keys() >= OPEN_NURSERIES
