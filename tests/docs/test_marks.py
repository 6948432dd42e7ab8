"""The runner of pages fails if the outcome of a block is not as written."""

from pathlib import Path

import pytest

from airy_trio.errors import SettingsError
from tests.docs.pages import Step, steps
from tests.docs.runner import accept, runner

BLOCK = "```sh\ntrue\n```\n"


def no_postgres() -> str:
    raise AssertionError


async def follow(text: str, folder: Path) -> None:
    async with runner(folder, no_postgres) as following:
        for step in steps(text):
            await following.do(step)


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def test_block_without_a_mark_is_an_error() -> None:
    with pytest.raises(AssertionError, match="line 3: no mark"):
        list(steps(f"a\n\n{BLOCK}"))


def test_a_mark_counts_for_one_block() -> None:
    with pytest.raises(AssertionError, match="line 5: no mark"):
        list(steps(f"<!-- run -->\n{BLOCK}{BLOCK}"))


@pytest.mark.parametrize("kind", ["not run", "test"])
def test_a_block_is_not_run_only_for_a_reason(kind: str) -> None:
    with pytest.raises(AssertionError, match=f"line 2: '{kind}' needs a reason"):
        list(steps(f"<!-- {kind}: -->\n{BLOCK}"))


def test_unknown_mark_is_an_error() -> None:
    with pytest.raises(AssertionError, match="'rnu' is not a mark"):
        list(steps(f"<!-- rnu -->\n{BLOCK}"))


def test_indented_block_is_dedented() -> None:
    [step] = steps("1. First\n\n   <!-- file: a.py -->\n   ```python\n   if a:\n       b\n   ```\n")
    assert step == Step("file", "a.py", "python", "if a:\n    b\n", 4)


@pytest.mark.parametrize(
    "text, fault",
    [
        pytest.param("<!-- run -->\n```sh\nfalse\n```\n", "line 2 ended with 1", id="a command fails"),
        pytest.param("<!-- run -->\n```sh\nfalse\ntrue\n```\n", "line 2 ended with 1", id="one of several fails"),
        pytest.param("<!-- run: 1 -->\n```sh\ntrue\n```\n", "line 2 ended with 0", id="one succeeds that should fail"),
        pytest.param("<!-- run -->\n```sh\nfalse | true\n```\n", "line 2 ended with 1", id="one of a pipe fails"),
        pytest.param(
            "<!-- run -->\n```sh\necho a\n```\n<!-- shows -->\n```\nb\n```\n", "'b'", id="it prints other lines"
        ),
        pytest.param(
            "<!-- run -->\n```sh\necho a; echo b\n```\n<!-- shows -->\n```\nb\na\n```\n", "'a'", id="in another order"
        ),
        pytest.param("<!-- start: it, ready -->\n```sh\necho no\n```\n", "no 'ready'", id="it ends before it is ready"),
        pytest.param(
            "<!-- start: it, a -->\n```sh\necho a\n```\n<!-- shows: it -->\n```\nb\n```\n",
            "no 'b'",
            id="it never prints the line",
        ),
    ],
)
async def test_block_with_another_outcome_is_an_error(text: str, fault: str, tmp_path: Path) -> None:
    message = ""
    try:
        await follow(text, tmp_path)
    except* AssertionError as broken:
        [leaf] = leaves(broken)
        message = str(leaf)
    assert fault in message


async def test_sql_prints_rows(tmp_path: Path, postgres_database: str) -> None:
    text = "<!-- sql -->\n```sql\ncreate table a (b int);\nselect 1, null\n```\n<!-- shows -->\n```\n1 | None\n```\n"
    async with runner(tmp_path, lambda: postgres_database) as following:
        for step in steps(text):
            await following.do(step)


def test_settings_that_the_program_rejects_are_an_error() -> None:
    with pytest.raises(SettingsError, match=r"listener\.prot"):
        accept("[listener]\nprot = 1\n")
