"""Rules about skips, the selection of ``--quick``, profiles for Hypothesis, and shared fixtures.

In CI, and with AIRY_TEST_NO_SKIPS=1, a skipped test is a failure, because its subject was not tested.

``--quick`` runs the tests of the code itself: those that need no other program. A test is left out if its folder is
about a whole program, if one of its fixtures is a server, or if a parameter selects such a fixture. To save time, tests
marked ``slow`` are left out too, and all but the first seeds and examples of a property. Outside of the folders about
databases, tests on an application's SQLite file are left out, because they build most of a server. A test that starts a
process fails with ``--quick``, so that it is marked.
"""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest
from _pytest.runner import runtestprotocol

FIXTURES = ("tests.application", "tests.command_line", "tests.pgbouncer", "tests.postgres", "tests.redis_server")
"""The modules with the shared fixtures."""

# A shell starts background jobs with SIGINT ignored. Every program that a test starts and interrupts would inherit
# this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MEMORY = Path("/dev/shm")  # noqa: S108 - pytest and tempfile create private folders in it
MEMORY_BYTES_MIN = 4 << 30
if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN:
    # Postgres creates a database in 10 ms there, on a disk in up to 80, and a commit of SQLite waits for no disk. A
    # small /dev/shm, as in a container by default, is not used, and neither is one if TMPDIR names a folder.
    os.environ["TMPDIR"] = str(MEMORY)
    tempfile.tempdir = None  # it is read again

AnyReport = TypeVar("AnyReport", pytest.TestReport, pytest.CollectReport)

SKIPS_FORBIDDEN = "AIRY_TEST_NO_SKIPS"

SERVERS = frozenset({"postgres", "own_postgres", "redis_server", "own_redis", "pgbouncer"})
"""The fixtures that start a server; all other fixtures that need a server use these."""
SERVER_PARAMETERS = frozenset({"postgres", "redis"})
"""Parameters with which a test or a fixture requests such a fixture."""
QUICK_MIN = 3000
"""With fewer tests in a whole run, a rule selects less than it should."""
QUICK_SEEDS = 1
QUICK_EXAMPLES = 5
PROGRAM_FOLDERS = frozenset({"clients", "console", "demo", "docs", "drill", "e2e"})
REDIS_MODULE = "test_redis_streams.py"
"""All its tests need Redis, and each worker would take 0.2 s to import the driver."""
DATABASE_FOLDERS = frozenset({"capture", "database", "log"})
DATABASES = frozenset({"any_application", "sqlite_application"})
PROCESS_STARTS = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec"})
"""Audit events of Python for the start of a process."""

# No deadline, because the time for an example depends more on the machine than on the code. pytest-timeout limits the
# whole test.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)


def skips_are_forbidden() -> bool:
    if SKIPS_FORBIDDEN in os.environ:
        return os.environ[SKIPS_FORBIDDEN] not in {"", "0"}
    return os.environ.get("CI", "") not in {"", "0", "false"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that need no other program and are not slow")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("ci" if skips_are_forbidden() else "here")
    if config.getoption("quick"):
        hypothesis.settings.register_profile("quick", hypothesis.settings(), max_examples=QUICK_EXAMPLES)
        hypothesis.settings.load_profile("quick")
        sys.addaudithook(_fail_if_a_process_starts)
    # If workers run the tests, half a second of imports would be for nothing here.
    if config.getoption("dist", "no") == "no" or not config.getoption("tx"):
        for name in FIXTURES:
            config.pluginmanager.register(import_module(name), name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    left_out = collection_path.name in PROGRAM_FOLDERS or collection_path.name == REDIS_MODULE
    return True if config.getoption("quick") and left_out else None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    gc.disable()  # imported modules and collected tests stay alive
    try:
        return (yield)
    finally:
        if session.config.getoption("quick"):
            gc.freeze()  # this saves a tenth of the time of the tests
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("quick"):
        return
    quick: list[pytest.Item] = []
    slow: list[pytest.Item] = []
    for item in items:
        (quick if _is_quick(item) else slow).append(item)
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and len(quick) < QUICK_MIN:
        raise pytest.UsageError(f"--quick selects only {len(quick)} tests")
    config.hook.pytest_deselected(items=slow)
    items[:] = quick


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """With ``--quick``, report a passing test only once: the usual six messages cost more time than many tests."""
    if not item.config.getoption("quick"):
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            report.keywords = {}  # they are a third of the message, and unused
            item.ihook.pytest_runtest_logreport(report=report)
    return True


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    gc.freeze()  # what pytest itself collects is done: the interpreter's last collections take most of a second


def _is_quick(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    seed = parameters.get("seed")
    avoided = SERVERS if item.path.parent.name in DATABASE_FOLDERS else SERVERS | DATABASES
    return (
        item.get_closest_marker("slow") is None
        and avoided.isdisjoint(item.fixturenames)
        and not any(one in SERVER_PARAMETERS for one in parameters.values() if isinstance(one, str))
        and not (isinstance(seed, int) and seed >= QUICK_SEEDS)
    )


def _fail_if_a_process_starts(event: str, _arguments: object) -> None:
    if event in PROCESS_STARTS and "PYTEST_CURRENT_TEST" in os.environ:  # pytest-xdist starts its workers
        pytest.fail("starts a process: mark the test slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _refuse_skip(report)


def _refuse_skip(report: AnyReport) -> AnyReport:
    """Turn a skip, of one test or of a whole module, into a failure if skips are forbidden."""
    if report.skipped and not hasattr(report, "wasxfail") and skips_are_forbidden():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: {reason} (skips are forbidden here, {SKIPS_FORBIDDEN})"
    return report
