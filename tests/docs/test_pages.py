"""Follow every page of the documentation: write its files, run its commands, read its settings."""

import shutil
from pathlib import Path

import pytest
import trio

from tests.docs.pages import FOLDER, pages
from tests.docs.runner import follow

PAGE_TIMEOUT_S = 100.0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", pages())
async def test_commands_of_a_page_work(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "curl " in (FOLDER / page).read_text() and shutil.which("curl") is None:
        pytest.skip("needs curl")
    with trio.fail_after(PAGE_TIMEOUT_S):
        await follow(page, tmp_path, lambda: str(request.getfixturevalue("postgres_database")))
