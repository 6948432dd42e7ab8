"""The wheel and the source distribution: what is in them, and that each stands alone."""

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import airy_trio
from tests.docs.pages import anchors
from tests.locks import NAMES, pins

ROOT = Path(__file__).parent.parent
NAME = f"airy_trio-{airy_trio.__version__}"
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


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


@pytest.mark.slow
def test_wheel_has_package_migrations_examples_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    migrations = {f"airy_trio/{name}" for name in sources("migrations")}
    assert migrations
    examples = {f"airy_trio/{name}" for name in sources("config")}
    assert inside == sources("airy_trio") | migrations | examples
    assert "airy_trio/py.typed" in inside


@pytest.mark.slow
def test_wheel_has_its_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{NAME}.dist-info/licenses/LICENSE" in wheel.namelist()
    scripts = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert "airy-trio = airy_trio.__main__:main" in scripts


@pytest.mark.slow
def test_wheel_has_every_file_of_the_console(wheel: zipfile.ZipFile) -> None:
    inside = {name.removeprefix("airy_trio/admin/console/") for name in wheel.namelist()}
    page = wheel.read("airy_trio/admin/console/console.html").decode()
    named = set(re.findall(r'(?:src|href)="(?:console/)?([\w.-]+)"', page))
    for script in (name for name in inside if name.endswith(".js")):
        named |= set(re.findall(r'from "\./([\w.-]+)"', wheel.read(f"airy_trio/admin/console/{script}").decode()))
    assert {"console.css", "icon.svg", "main.js", "charts.js"} <= named
    assert named <= inside


@pytest.mark.slow
def test_description_links_to_the_files_of_this_version(wheel: zipfile.ZipFile, sdist: set[str]) -> None:
    """Relative links do not work outside of the checkout."""
    metadata = message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL") or [])
    assert set(urls) == {"Changelog", "Documentation", "Source"}
    source, version = urls["Source"], f"v{airy_trio.__version__}"
    for url in {*urls.values()} - {source}:
        assert url.startswith(f"{source}/blob/main/")
        assert url.removeprefix(f"{source}/blob/main/") in sdist
    readme, description = (ROOT / "README.md").read_text(), str(metadata.get_payload())
    assert CODE.findall(description) == CODE.findall(readme)
    prose = CODE.sub("", description)
    assert not re.search(r"<\w+[ :]|^\[[^\]]+\]:", prose, re.MULTILINE)  # no other way to write a link or a picture
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", prose)
    assert len(links) == prose.count("](") == CODE.sub("", readme).count("](")
    for picture, target in links:
        url, _, anchor = target.partition("#")
        kind = "raw" if picture else "blob"
        path = url.removeprefix(f"{source}/{kind}/{version}/") if url else "README.md"
        if "://" in path:  # of another project
            assert path.startswith("https://"), target
            assert not path.startswith(source), target
            continue
        assert path in sdist or any(name.startswith(path) for name in sdist if path.endswith("/")), target
        assert not picture or Path(path).suffix in {".svg", ".png"}, target
        assert not anchor or anchor in anchors((ROOT / path).read_text()), target
    assert any(picture for picture, _ in links)


@pytest.mark.slow
def test_make_dist_refuses_an_address_that_is_not_public() -> None:
    """The address in the metadata is reserved for documentation (RFC 2606) until the project has one."""
    if "example.org" not in (ROOT / "pyproject.toml").read_text():
        return
    command = ["make", "--old-file", ".venv/.tests", "dist"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert "no public address" in ended.stdout


@pytest.mark.slow
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


@pytest.mark.slow
def test_sdist_is_enough_to_work_on(sdist: set[str]) -> None:
    needed = {"LICENSE", "Makefile", "README.md", "pyproject.toml", "tests/clients/package-lock.json"}
    assert needed <= sdist
    for folder, pattern in (("airy_trio", "*"), ("migrations", "*"), ("tests", "*.py"), ("config", "*.toml")):
        assert sources(folder, pattern) <= sdist
    assert [name for name in sdist if "node_modules" in name or "__pycache__" in name] == []


@pytest.mark.parametrize("name", NAMES)
def test_lock_file_has_hashes_and_no_host(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE), "an option, such as that of an index"
    assert all(pin.hashes for pin in pins(name))


EXTRAS = {"ci": ("dev", "docs", "fuzz"), "image": ("redis",), "test": ("test",), "lowest": ("test",)}


@pytest.mark.parametrize("name, extras", EXTRAS.items())
def test_lock_file_fits_the_requirements(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, open_ = list(project["dependencies"]), list(extras)
    while open_:
        for line in project["optional-dependencies"][open_.pop()]:
            requirement = Requirement(line)
            if requirement.name == "airy-trio":
                open_ += requirement.extras
            else:
                wanted.append(line)
    locked = pins(name)
    for requirement in map(Requirement, wanted):
        versions = [pin.version for pin in locked if pin.name == canonicalize_name(requirement.name)]
        allowed = [version for version in versions if version in requirement.specifier]
        assert allowed, f"{requirement}: run `make lock`"
        if name == "lowest":
            [lowest] = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
            assert [*map(Version, allowed)] == [lowest], f"{requirement}: the lowest is {allowed}; run `make lock`"


def test_build_lock_has_the_build_requirements() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = {pin.name: pin.version for pin in pins("build")}
    for requirement in map(Requirement, requires):
        assert locked[requirement.name] in requirement.specifier


def test_package_lock_names_no_host() -> None:
    """Where a package came from is the business of the machine that installs it; its hash is what counts."""
    packages = json.loads((ROOT / "tests" / "clients" / "package-lock.json").read_text())["packages"]
    for package in packages.values():
        package.pop("funding", None)  # whom its authors would like to be paid by
    text = json.dumps(packages)
    assert "integrity" in text
    assert "resolved" not in text
    assert "://" not in text
