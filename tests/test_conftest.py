"""The rule about skips and the selection of ``--quick``, each in a run of pytest of its own."""

from pathlib import Path

import pytest

from tests.conftest import SKIPS_FORBIDDEN, skips_are_forbidden

pytest_plugins = "pytester"

SKIPS = """
import pytest

def test_that_is_skipped():
    pytest.skip("no time")

@pytest.mark.xfail(reason="known")
def test_that_is_known_to_fail():
    assert False
"""
MODULE_THAT_SKIPS = "import pytest\npytest.importorskip('there_is_no_such_module')\n"
NEEDS = """
import subprocess, sys
import pytest, trio

def test_nothing():
    pass

@pytest.mark.slow
def test_time():
    pass

def test_a_server(postgres_database):
    pass

@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_server_for_one_parameter(store):
    pass

def test_a_database(sqlite_application):
    pass

@pytest.mark.parametrize("seed", range(5))
def test_seeds(seed):
    pass

def test_a_process():
    subprocess.run([sys.executable, "--version"])

async def test_a_process_in_a_nursery():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.run_process, [sys.executable, "--version"])
        await trio.sleep_forever()
"""


@pytest.mark.parametrize(
    "environ, forbidden",
    [
        ({}, False),
        ({"CI": "false"}, False),
        ({"CI": "true"}, True),
        ({"AIRY_TEST_NO_SKIPS": "1"}, True),
        ({"CI": "true", "AIRY_TEST_NO_SKIPS": "0"}, False),
    ],
)
def test_environment_decides_whether_skips_are_forbidden(
    environ: dict[str, str], forbidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", SKIPS_FORBIDDEN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert skips_are_forbidden() is forbidden


@pytest.mark.slow
@pytest.mark.parametrize("forbidden", ["0", "1"])
def test_forbidden_skip_is_a_failure(
    forbidden: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SKIPS_FORBIDDEN, forbidden)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(test_one=SKIPS, test_module=MODULE_THAT_SKIPS)
    result = pytester.runpytest_subprocess("-p", "tests.conftest", "--continue-on-collection-errors")
    expected = {"failed": 1, "errors": 1} if forbidden == "1" else {"skipped": 2}
    assert result.parseoutcomes() == {"xfailed": 1} | expected


@pytest.mark.slow
def test_quick_leaves_out_what_its_rules_say(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    pytester.makeini("[pytest]\ntrio_mode = true\nmarkers = slow\n")
    pytester.makepyfile(NEEDS)
    result = pytester.runpytest_subprocess("-p", "tests.conftest", "--quick")
    assert result.parseoutcomes() == {"passed": 3, "failed": 2, "deselected": 8}
