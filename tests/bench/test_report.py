"""The report of a benchmark: ratios within a round, targets, tables, pictures; text by others stays unchanged."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.cases import Case, Results, Scale, main_cases
from bench.chart import Line, Panel, svg
from bench.pace import STRICT
from bench.processes import AIRY, LIMIT, PEER, STREAMS, Contender
from bench.report import put_section, table, write
from bench.targets import Row, rows


def case(contender: Contender, name: str = "strict") -> Case:
    return Case(name=name, contender=contender, pace=STRICT, clients=1, measure_ms=1)


def test_a_ratio_is_taken_within_a_round() -> None:
    results = Results()
    for ours, theirs in (
        (10.0, 5.0),
        (100.0, 25.0),
        (1.0, 1.0),
    ):  # a machine that is fast in one round and slow in another
        results.add(case(AIRY), {"rate": ours})
        results.add(case(PEER), {"rate": theirs})
    assert results.ratio("strict", AIRY, PEER, "rate") == 2.0
    assert results.median("strict", AIRY, "rate") == 10.0
    assert results.has("strict", AIRY, PEER)
    assert not results.has("strict", AIRY, LIMIT)


@pytest.mark.parametrize(
    "row, verdict",
    [
        (Row(title="", bound=2.0, value=2.0), "met"),
        (Row(title="", bound=2.0, value=1.5), "**missed by 25%**"),
        (Row(title="", bound=2.0, value=2.0, more_is_worse=True), "met"),
        (Row(title="", bound=2.0, value=3.0, more_is_worse=True), "**missed by 50%**"),
        (Row(title="", bound=0, value=3, more_is_worse=True), "missed by 3"),
    ],
)
def test_target_is_met_or_missed_by_a_share(row: Row, verdict: str) -> None:
    assert row.verdict == verdict


def test_every_case_meets_its_targets_in_a_perfect_run() -> None:
    results, scale = Results(), Scale()
    figures = dict.fromkeys(
        (
            *("deliveries", "deliveries_per_s", "server_cpu_us", "load_cpu_share", "p99_ms", "kib_per_connection"),
            *("connects_per_s", "rss_peak_kib", "rss_idle_kib", "dead_cut", "latest_cut_ms", "resumes", "pongs"),
        ),
        1.0,
    )
    for one in main_cases(scale):
        results.add(one, {**figures, "faults": 0.0})
    assert [row for row in rows(results, scale) if row.title.startswith("gaps") and not row.met] == []
    results.add(case(AIRY), {**figures, "faults": 1.0})
    results.add(case(LIMIT), {**figures, "faults": 0.0})
    results.add(case(STREAMS), {**figures, "faults": 0.0})
    results.add(case(PEER), {**figures, "faults": 0.0})
    assert [row.value for row in rows(results, scale) if row.title.startswith("gaps")] == [1.0]


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


def test_picture_is_svg_with_a_line_per_name() -> None:
    one, two = Line("black", [(1, 10), (100, 1000)]), Line("red", [(10, 5)])
    panel = Panel(title="a < b", x_label="x", y_label="y", lines={"one": one, "two": two})
    root = ET.fromstring(svg([panel, panel]))  # noqa: S314 - written by ourselves
    space = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f".//{space}polyline")
    assert [line.attrib["stroke"] for line in lines] == 2 * ["black", "black", "red", "red"]  # each with its sample
    first, last = (tuple(map(float, point.split(","))) for point in lines[0].attrib["points"].split())
    assert first[0] < last[0]
    assert first[1] > last[1]  # more is higher
    assert {"a < b", "one", "two", "2", "5", "20", "500", "1k"} <= {text.text for text in root.iter(f"{space}text")}


def test_only_the_given_part_of_a_section_is_replaced() -> None:
    text = put_section("", "Ours", {"One": ["1"], "Two": ["2", "", "| # |"]})
    text = put_section("# Title\n\nwords\n\n" + text + "\n## Theirs\n\n### One\n\ntheir 1\n", "Ours", {"Two": ["3"]})
    assert text == "# Title\n\nwords\n\n## Ours\n\n### One\n\n1\n\n### Two\n\n3\n\n## Theirs\n\n### One\n\ntheir 1\n"
    assert put_section(text, "Ours", {"One": ["1"]}) == text
    more = put_section(put_section("", "Ours", {"One": ["1"]}), "Ours", {"Two": ["2"]})
    assert more == "## Ours\n\n### One\n\n1\n\n### Two\n\n2\n"


def test_results_leave_other_sections_unchanged(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    write("Ours", {"One": ["1"]}, results)
    write("Theirs", {"Two": ["2"]}, results)
    write("Ours", {"One": ["3"]}, results)
    assert results.read_text() == "# Results\n\n## Ours\n\n### One\n\n3\n\n## Theirs\n\n### Two\n\n2\n"
