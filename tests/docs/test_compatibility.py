"""The page of compatibility: the supported versions are those of the program and of its metadata."""

import re
import tomllib

from airy_trio.check.servers import SQLITE_VERSION_MIN, VERSION_MIN
from tests.docs.pages import FOLDER, ROOT

WORDS_MAX = 500
PAGE = (FOLDER / "reference" / "compatibility.md").read_text()


def supported(name: str) -> str:
    table = PAGE.partition("| supported |")[2]
    [versions] = re.findall(rf"^\| {name} \| ([^|]+) \|", table, re.MULTILINE)
    return str(versions)


def test_page_is_short() -> None:
    assert len(PAGE.split()) <= WORDS_MAX


def test_python_versions_are_those_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">={versions[0]}"
    assert supported("Python") == f"{versions[0]} to {versions[-1]}"


def test_databases_are_those_that_check_accepts() -> None:
    assert supported("PostgreSQL") == f"{VERSION_MIN} or newer"
    assert supported("SQLite") == f"{'.'.join(map(str, SQLITE_VERSION_MIN))} or newer"
