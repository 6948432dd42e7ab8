"""The lock files in ``locks/``: the packages that they pin."""

import re
from pathlib import Path

from attrs import frozen
from packaging.markers import Marker
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NAMES = tuple(sorted(path.stem for path in (ROOT / "locks").glob("*.txt")))


@frozen
class Pin:
    """A version of a package, with the hashes of its files. ``marker``: the environments that need it; None: all."""

    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]


def pins(name: str) -> list[Pin]:
    """Return all pins of a lock file. Raises ``AssertionError`` for a line that is neither a pin nor a hash."""
    text = (ROOT / "locks" / f"{name}.txt").read_text().replace("\\\n", " ")
    return [_pin(line) for line in text.splitlines()]


def _pin(line: str) -> Pin:
    found = re.fullmatch(
        r"(?P<name>[\w.-]+)==(?P<version>\S+)(?: ; (?P<marker>.*?))?(?P<hashes>(?: +--hash=sha256:[0-9a-f]{64})+)", line
    )
    assert found, line
    marker = Marker(found["marker"].strip()) if found["marker"] else None
    hashes = tuple(found["hashes"].split())
    return Pin(canonicalize_name(found["name"]), found["version"], marker, hashes)
