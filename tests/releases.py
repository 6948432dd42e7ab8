"""The previous release: its tag, and its wheel installed in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]


def previous_tag(repository: Path) -> str | None:
    """Return the newest tag ``v…`` before HEAD, or None: no release yet, a clone without history, or no repository."""
    git = shutil.which("git")
    if git is None:
        return None
    tags = ["tag", "--list", "v[0-9]*", "--merged", "HEAD", "--no-contains", "HEAD", "--sort=-version:refname"]
    listed = subprocess.run(
        [git, "-c", "safe.directory=*", *tags],  # the owner of a checkout in CI may be another user
        check=False,
        capture_output=True,
        text=True,
        cwd=repository,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(repository.parent)},
    )
    return next(iter(listed.stdout.splitlines()), None)


def is_released(changelog: str) -> bool:
    """Return whether a changelog has an earlier release than the one that is being prepared or tested."""
    headings = re.findall(r"^## (Unreleased|\d\S*)", changelog, re.MULTILINE)
    return len(headings) > 1


def install_previous(folder: Path, repository: Path = ROOT) -> Path:
    """Build the wheel of the previous release, install it into a new environment, and return that environment.

    Its dependencies are those of the environment that runs the tests, so nothing is downloaded. Before the first
    release there is no tag, and the checkout itself is built.
    """
    source = repository
    if (tag := previous_tag(repository)) is not None:
        source = folder / "source"
        _run("git", "-c", "safe.directory=*", "archive", "--output", str(folder / "source.tar"), tag, at=repository)
        with tarfile.open(folder / "source.tar") as archive:
            archive.extractall(source, filter="data")
    elif is_released((repository / "CHANGELOG.md").read_text(encoding="utf-8")):
        raise AssertionError("no tag of an earlier release, although CHANGELOG.md has one; fetch the tags")
    _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(source), at=folder)
    [wheel] = folder.glob("*.whl")

    home = folder / "environment"
    venv.create(home, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    _run(*pip, "--no-index", "--no-deps", str(wheel), at=folder)
    place = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(home), "platbase": str(home)}))
    shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (place / "shared.pth").write_text("\n".join(sorted(shared)))  # without the checkout: nested .pth are ignored
    return home


def _run(*command: str, at: Path) -> None:
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=at)
    assert ended.returncode == 0, ended.stdout + ended.stderr
