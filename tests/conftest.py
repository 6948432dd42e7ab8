"""What holds for every test: the rules about skips, Hypothesis' profiles, and the fixtures that are shared.

A skipped test is a promise that nobody looked at. Where everything must be there (CI, or AIRY_TEST_NO_SKIPS=1), a skip
is a failure.
"""

import os
from collections.abc import Generator
from typing import TypeVar

import hypothesis
import pytest

from tests.application import any_application, postgres_application, sqlite_application
from tests.command_line import command_line
from tests.pgbouncer import pgbouncer
from tests.postgres import own_postgres, postgres, postgres_database
from tests.redis_server import collected, own_redis, redis_server

__all__ = [
    "any_application",
    "collected",
    "command_line",
    "own_postgres",
    "own_redis",
    "pgbouncer",
    "postgres",
    "postgres_application",
    "postgres_database",
    "redis_server",
    "sqlite_application",
]

AnyReport = TypeVar("AnyReport", pytest.TestReport, pytest.CollectReport)

SKIPS_FORBIDDEN = "AIRY_TEST_NO_SKIPS"

# No deadline: time per example says more about the machine than about the code; pytest-timeout limits the whole test.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)


def skips_are_forbidden() -> bool:
    if SKIPS_FORBIDDEN in os.environ:
        return os.environ[SKIPS_FORBIDDEN] not in {"", "0"}
    return os.environ.get("CI", "") not in {"", "0", "false"}


def pytest_configure() -> None:
    hypothesis.settings.load_profile("ci" if skips_are_forbidden() else "here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _refuse_skip(report)


def _refuse_skip(report: AnyReport) -> AnyReport:
    """Turn a skip, of one test or of a whole module, into a failure where skips are forbidden."""
    if report.skipped and not hasattr(report, "wasxfail") and skips_are_forbidden():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: {reason} (skips are forbidden here, {SKIPS_FORBIDDEN})"
    return report
