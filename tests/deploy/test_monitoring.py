"""The alerts and the dashboard: each metric and label in them exists in a real server, and each alert has a remedy."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import trio
import yaml
from attrs import frozen

from airy_trio.admin.server import AdminOptions
from tests.admin.serving import Samples, admin, free_port, serving_all
from tests.application import application
from tests.docs.metric_families import families
from tests.docs.pages import parts

ROOT = Path(__file__).parents[2]
ALERTS = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = frozenset({"job", "instance"})
"""Labels that Prometheus adds to every sample. ``up`` is a metric of its own."""


@frozen
class Use:
    """A metric and a label of it that an expression names; "": only the metric. ``value``: what the label equals."""

    metric: str
    label: str = ""
    value: str = ""


def expressions() -> Iterator[tuple[str, str]]:
    """Return every named expression. Grafana's variables are replaced by values."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m")
            yield f"{panel['title']} {target['refId']}", expression


def uses(expression: str) -> set[Use]:
    """Return the uses in a PromQL expression. Raises ``ValueError`` if it is not one."""
    found: set[Use] = set()
    _collect(promql.parse(expression), found)
    return found


def _collect(node: Any, found: set[Use]) -> set[str]:  # noqa: ANN401 - any of promql_parser's expressions
    """Return the metrics below a node; aggregations name labels of all of them."""
    metrics: set[str] = set()
    if isinstance(node, promql.VectorSelector):
        assert node.name, "a selector without a metric"
        found.add(Use(node.name))
        for matcher in node.matchers.matchers:
            exact = matcher.op == promql.MatchOp.Equal
            found.add(Use(node.name, matcher.name, matcher.value if exact else ""))
        return {node.name}
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        if (below := getattr(node, name, None)) is not None:
            metrics |= _collect(below, found)
    for argument in getattr(node, "args", None) or ():
        metrics |= _collect(argument, found)
    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        found |= {Use(metric, label) for metric in metrics for label in node.modifier.labels}
    return metrics


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The metrics that a server exports just after its start."""

    async def scraped() -> Samples:
        async with serving_all(settings) as (_, port):
            return await port.samples()

    path = tmp_path_factory.mktemp("server") / "app.db"
    with application(f"sqlite:///{path}", create=True) as made:
        settings = made.migrate(admin(free_port()))
        return trio.run(scraped)


def missing(use: Use, samples: Samples) -> str:
    """Return the part of a use that a server does not export, or ""."""
    if use.metric == "up":
        return "" if use.label in OF_PROMETHEUS | {""} else f"up has no label {use.label}"
    labels = [dict(labels) for name, labels in samples if name == use.metric]
    if not labels:
        return f"there is no {use.metric}"
    if use.label in OF_PROMETHEUS | {""}:
        return ""
    if not any(use.label in one for one in labels):
        return f"{use.metric} has no label {use.label}"
    if use.value and use.value not in {one[use.label] for one in labels}:
        return f"{use.metric} has no {use.label} {use.value!r}"
    return ""


def test_every_metric_and_label_exists_in_a_real_server(samples: Samples) -> None:
    faults = {
        name: fault
        for name, expression in expressions()
        for use in uses(expression)
        if (fault := missing(use, samples))
    }
    assert faults == {}


def test_uses_that_do_not_exist_are_found(samples: Samples) -> None:
    expression = 'sum by (colour) (rate(airy_trio_disconnects_total{reason="bored"}[5m])) / airy_trio_joy > 1'
    assert {fault for use in uses(expression) if (fault := missing(use, samples))} == {
        "airy_trio_disconnects_total has no label colour",
        "airy_trio_disconnects_total has no reason 'bored'",
        "there is no airy_trio_joy",
    }


def test_summaries_name_labels_that_the_alert_has(samples: Samples) -> None:
    for rule in RULES:
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = {use.label for use in uses(rule["expr"])}
        of_metrics = {label for name, labels in samples for label, _ in labels if Use(name) in uses(rule["expr"])}
        available = kept if " by " in rule["expr"] else kept | of_metrics | OF_PROMETHEUS
        assert named <= available, rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_scrape_job_of_the_page_fits_alerts_and_port() -> None:
    [block] = parts("how-to/operate.md", "yaml")
    [job] = yaml.safe_load(block)["scrape_configs"]
    assert Use("up", "job", job["job_name"]) in {use for rule in RULES for use in uses(rule["expr"])}
    [[target]] = [one["targets"] for one in job["static_configs"]]
    assert target == f"airy-trio:{AdminOptions().port}"
    assert {*job["authorization"]} == {"credentials_file"}
    assert {*job} == {"job_name", "authorization", "static_configs"}, "the path is the default one"


def test_every_alert_has_a_line_in_the_runbook() -> None:
    page = (ROOT / "docs" / "how-to" / "operate.md").read_text()
    section = page.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert [name for name, _, _ in rows] == [rule["alert"] for rule in RULES]
    assert all(what and remedy for _, what, remedy in rows)


def test_panels_have_unique_ids_units_and_descriptions() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == ["datasource", "job"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_metric_names_follow_the_conventions_of_prometheus() -> None:
    """A counter ends with _total, a base unit comes last, and no name contains a type or a label."""
    for family in families():
        base = family.name.removesuffix("_total")
        assert re.fullmatch(r"airy_trio_[a-z]+(?:_[a-z]+)*", family.name), family.name
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert not re.search(r"_(?:ms|milliseconds|minutes|kib|mib|percent|gauge|counter|histogram)(?:_|$)", base)
        assert not re.search(r"_(?:count|sum|bucket)$", base), "suffixes of a histogram"
        assert not re.search(r"_(?:seconds|bytes)_", base), "the unit is last"
        assert family.kind != "histogram" or base.endswith("_seconds")
        assert not any(f"_{label}" in base or label in {"job", "instance", "le", "token"} for label in family.labels)
        assert family.words.endswith(".")
