"""The page that compares airy-trio with other projects: dated, and each cell has a source."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "explanation" / "comparison.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| **")]
SOURCES = {int(number) for number in re.findall(r"^(\d+)\. .*\]\(\S+\)", PAGE, re.MULTILINE)}


def test_each_cell_has_a_source() -> None:
    assert len(ROWS) == 9
    used: set[int] = set()
    for name, *cells in ROWS:
        assert len(cells) == 5, name
        for cell in cells:
            numbers = re.findall(r"\[([\d, ]+)\]", cell)
            assert numbers or cell == "not stated", f"{name}: {cell}"
            used |= {int(number) for group in numbers for number in group.split(",")}
    assert used == SOURCES


def test_page_has_a_date() -> None:
    assert re.search(r"Read on \d{4}-\d\d-\d\d", PAGE)
