"""Shell completion: run by a real bash; for other shells only the script."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airy_trio.migrate import revisions
from tests.processes import AIRY_TRIO, run

BASH = shutil.which("bash")
ASK = """
eval "$(airy-trio completion bash)"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_airy_trio_completion airy-trio
echo "${COMPREPLY[@]}"
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment with ``airy-trio`` on its path."""
    script = tmp_path / "airy-trio"
    script.write_text(f'#!/bin/sh\nexec {" ".join(AIRY_TRIO)} "$@"\n')
    script.chmod(0o700)
    return {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="no bash on this machine")
@pytest.mark.parametrize(
    "words, completed",
    [
        (["airy-trio", "mi"], ["migrate"]),
        (["airy-trio", "migrate", "--re"], ["--remove"]),
        (["airy-trio", "migrate", "--to", "changes_000"], [*revisions("changes")]),
        (["airy-trio", "completion", ""], ["bash", "zsh", "fish"]),
        (["airy-trio", "--ver"], ["--version"]),
    ],
)
def test_bash_completes(words: list[str], completed: list[str], installed: dict[str, str]) -> None:
    assert BASH is not None
    ended = subprocess.run(
        [BASH, "--norc", "-c", ASK, "bash", *words], check=True, capture_output=True, text=True, env=installed
    )
    assert ended.stdout.split() == completed
    assert ended.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("shell, word", [("zsh", "compdef _airy_trio_completion airy-trio"), ("fish", "complete ")])
async def test_other_shells_get_their_script(shell: str, word: str) -> None:
    ended = await run("completion", shell)
    assert (ended.code, ended.err) == (0, "")
    assert word in ended.out
    assert "_AIRY_TRIO_COMPLETE" in ended.out


@pytest.mark.slow
async def test_unknown_shell_is_rejected_with_the_known_ones() -> None:
    ended = await run("completion", "tcsh")
    assert (ended.code, ended.out) == (2, "")
    assert "'bash', 'zsh', 'fish'" in ended.err
