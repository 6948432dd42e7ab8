"""The rule about skips, in a run of pytest of its own."""

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
