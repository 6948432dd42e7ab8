"""The wheel and the source distribution: what is in them, and that each stands alone."""

import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

import airy_trio

ROOT = Path(__file__).parent.parent
NAME = f"airy_trio-{airy_trio.__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built from the checkout without a download."""
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--sdist",
        "--wheel",
        "--outdir",
        str(folder),
        str(ROOT),
    ]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as archive:
        yield archive


@pytest.fixture
def sdist(built: Path) -> set[str]:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        return {name.removeprefix(f"{NAME}/") for name in archive.getnames()}


def sources(folder: str, pattern: str = "*") -> set[str]:
    found = (path for path in (ROOT / folder).rglob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_wheel_has_the_package_the_migrations_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    migrations = {f"airy_trio/{name}" for name in sources("migrations")}
    assert migrations
    assert inside == sources("airy_trio") | migrations
    assert "airy_trio/py.typed" in inside


def test_wheel_has_its_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{NAME}.dist-info/licenses/LICENSE" in wheel.namelist()
    scripts = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert "airy-trio = airy_trio.__main__:main" in scripts


def test_wheel_works_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)  # noqa: S202 - we have just built it
    ended = subprocess.run(
        [sys.executable, "-P", "-c", "import airy_trio.cli; print(airy_trio.cli.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert Path(ended.stdout.strip()) == tmp_path / "airy_trio" / "cli" / "__init__.py"


def test_sdist_is_enough_to_work_on(sdist: set[str]) -> None:
    needed = {"LICENSE", "Makefile", "README.md", "pyproject.toml", "tests/clients/package-lock.json"}
    assert needed <= sdist
    for folder, pattern in (("airy_trio", "*"), ("migrations", "*"), ("tests", "*.py"), ("config", "*.toml")):
        assert sources(folder, pattern) <= sdist
    assert [name for name in sdist if "node_modules" in name or "__pycache__" in name] == []


def test_lock_file_names_no_host() -> None:
    """Where a package came from is the business of the machine that installs it; its hash is what counts."""
    packages = json.loads((ROOT / "tests" / "clients" / "package-lock.json").read_text())["packages"]
    for package in packages.values():
        package.pop("funding", None)  # whom its authors would like to be paid by
    text = json.dumps(packages)
    assert "integrity" in text
    assert "resolved" not in text
    assert "://" not in text
