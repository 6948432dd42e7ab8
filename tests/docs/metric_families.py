"""The metric families of a server with their labels, read from the registry of a server that this module starts."""

import tempfile
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import trio
from attrs import frozen
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from airy_trio.admin import endpoints
from airy_trio.admin.endpoints import PREFIX, Sources, registry
from airy_trio.app import server
from tests.admin.serving import admin, free_port
from tests.application import application

SUFFIXES: Final = {"counter": "_total"}
TIMEOUT_S: Final = 30.0


@frozen
class Family:
    """One metric family. ``name`` is the name in queries, with the suffix; ``words`` is the help text."""

    name: str
    kind: str
    labels: tuple[str, ...]
    words: str


def families() -> list[Family]:
    """Return all metric families of airy-trio in the order of the exposition."""
    with tempfile.TemporaryDirectory() as folder:
        return trio.run(_collected, Path(folder) / "app.db")


async def _collected(path: Path) -> list[Family]:
    kept: list[CollectorRegistry] = []

    def keep(sources: Sources) -> CollectorRegistry:
        kept.append(registry(sources))
        return kept[0]

    with application(f"sqlite:///{path}", create=True) as made:
        settings = made.migrate(admin(free_port()))
    with trio.fail_after(TIMEOUT_S), patch.object(endpoints, "registry", keep):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, settings)
            found = [_family(metric) for metric in kept[0].collect() if metric.name.startswith(PREFIX)]
            nursery.cancel_scope.cancel()
    return found


def _family(metric: Metric) -> Family:
    labelled: Any = metric  # the only place that has the labels of a family without samples
    labels = tuple(labelled._labelnames)  # noqa: SLF001 - no public attribute has them
    return Family(f"{metric.name}{SUFFIXES.get(metric.type, '')}", metric.type, labels, metric.documentation)
