"""The previous release: its tag, and the wheel that is built from it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.releases import ROOT, install_previous, is_released, previous_tag

GIT = shutil.which("git")
AUTHOR = (
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@example.org",
    "-c",
    "commit.gpgsign=false",
    "-c",
    "tag.gpgsign=false",
)

pytestmark = pytest.mark.skipif(GIT is None, reason="no git on this machine")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A new repository, in which nothing is committed."""
    folder = tmp_path / "repository"
    git(tmp_path, "init", "--quiet", str(folder))
    return folder


def git(folder: Path, *arguments: str) -> None:
    assert GIT is not None
    subprocess.run([GIT, *AUTHOR, *arguments], check=True, cwd=folder, capture_output=True)


def commit(repository: Path, *tags: str) -> None:
    git(repository, "commit", "--quiet", "--allow-empty", "--message", f"{tags}")
    for tag in tags:
        git(repository, "tag", "--annotate", "--message", tag, tag)


@pytest.mark.slow
def test_tag_of_head_is_not_the_previous_release(repository: Path) -> None:
    commit(repository, "v0.1.0")
    assert previous_tag(repository) is None
    commit(repository)
    assert previous_tag(repository) == "v0.1.0"
    commit(repository, "v0.2.0")
    assert previous_tag(repository) == "v0.1.0"


@pytest.mark.slow
def test_newest_version_before_head_is_the_previous_release(repository: Path) -> None:
    commit(repository, "v0.1.0")
    commit(repository, "v0.9.0")
    commit(repository, "v0.10.0")
    commit(repository, "notes")
    git(repository, "branch", "ahead")
    commit(repository)
    assert previous_tag(repository) == "v0.10.0"
    git(repository, "checkout", "--quiet", "ahead")
    commit(repository, "v0.11.0")
    git(repository, "checkout", "--quiet", "-")
    assert previous_tag(repository) == "v0.10.0"  # the other is no ancestor


@pytest.mark.slow
def test_clone_without_history_has_no_previous_release(repository: Path, tmp_path: Path) -> None:
    commit(repository, "v0.1.0")
    commit(repository)
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{repository}", "shallow")
    assert previous_tag(tmp_path / "shallow") is None


@pytest.mark.slow
def test_missing_tag_of_a_release_is_an_error(tmp_path: Path) -> None:
    changelog = "# Changelog\n\n## Unreleased\n\n## 0.1.0 (2026-12-01)\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    with pytest.raises(AssertionError, match="fetch the tags"):
        install_previous(tmp_path / "place", tmp_path)
    assert not is_released("# Changelog\n\n## 0.1.0 (2026-12-01)\n\n### Added\n")  # the commit of the first tag


@pytest.mark.slow
def test_folder_in_another_repository_has_no_previous_release(repository: Path) -> None:
    commit(repository, "v0.1.0")
    commit(repository)
    inside = repository / "unpacked"
    inside.mkdir()
    assert previous_tag(inside) is None


@pytest.mark.slow
def test_previous_release_is_built_from_its_tag(repository: Path, tmp_path: Path) -> None:
    for name in ("airy_trio", "migrations", "config", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, repository / name)
    version = repository / "airy_trio" / "__init__.py"
    version.write_text('__version__ = "0.0.9"\n')
    git(repository, "add", ".")
    commit(repository, "v0.0.9")
    version.write_text("this version cannot even be built\n")
    git(repository, "add", ".")
    commit(repository)
    place = tmp_path / "place"
    place.mkdir()
    program = install_previous(place, repository) / "bin" / "airy-trio"
    answered = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    assert answered.stdout == "airy-trio, version 0.0.9\n"
