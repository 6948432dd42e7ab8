"""SECURITY.md: every row of its tables names tests, and every named test exists."""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
ROWS = [line for line in TEXT.splitlines() if re.match(r"\| (?!threat |what )[^-]", line)]
NAMED = sorted(set(re.findall(r"`(tests/[^`]+\.py)::([^`]+)`", TEXT)))
WHO = ("An anonymous client", "An authenticated client", "A proxy", "A compromised database role")


@cache
def names_in(path: str) -> frozenset[str]:
    return frozenset(re.findall(r"^(?:async )?def (test_\w+)", (ROOT / path).read_text(), flags=re.MULTILINE))


def test_every_named_test_exists() -> None:
    assert [f"{path}::{name}" for path, name in NAMED if name not in names_in(path)] == []


def test_every_row_has_threat_answer_and_tests() -> None:
    for row in ROWS:
        threat, answer, shown = (cell.strip() for cell in row.strip("|").split("|"))
        assert threat, row
        assert answer, row
        assert set(re.sub(r"`tests/[^`]+\.py::test_\w+`", "", shown)) <= set(", "), row
        assert "::" in shown, row


def test_every_kind_of_attacker_has_a_section() -> None:
    sections = [line.removeprefix("### ") for line in TEXT.splitlines() if line.startswith("### ")]
    assert all(any(section.startswith(who) for section in sections) for who in WHO)
    assert len(ROWS) > 25
