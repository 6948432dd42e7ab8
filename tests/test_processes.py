"""Processes that tests start: their lines are found or quoted, and nothing is left behind."""

import sys
from collections.abc import Sequence

import pytest
import trio

from tests.processes import Program, running


def python(code: str) -> Sequence[str]:
    return [sys.executable, "-c", code]


SPEAKS_THEN_WAITS = """
import signal, sys
print('plain text', file=sys.stderr)
print('{"event": "listening", "port": 1}', file=sys.stderr)
print('{"event": "listening", "port": 2}', file=sys.stderr, flush=True)
signal.sigwait({signal.SIGTERM})
print('last words, no line end', end='')
sys.exit(3)
"""


@pytest.mark.slow
async def test_record_is_the_first_with_these_facts() -> None:
    with trio.fail_after(20):
        async with running(Program, python(SPEAKS_THEN_WAITS)) as started:
            assert (await started.record("listening"))["port"] == 1
            assert (await started.record("listening", port=2))["port"] == 2
            await started.kill()


@pytest.mark.slow
async def test_missing_record_raises_with_the_output() -> None:
    with trio.fail_after(20):
        async with running(Program, python("import sys; sys.exit('no such table')")) as started:
            with pytest.raises(AssertionError, match="no such table"):
                await started.record("listening")


@pytest.mark.slow
async def test_terminate_returns_exit_code_and_complete_output() -> None:
    code = "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM});" + SPEAKS_THEN_WAITS
    with trio.fail_after(20):
        async with running(Program, python(code)) as started:
            await started.record("listening")
            assert await started.terminate() == 3
            assert started.out.all == ["last words, no line end"]


@pytest.mark.slow
async def test_process_is_killed_at_the_end() -> None:
    with trio.fail_after(20):
        async with running(Program, python("import time; time.sleep(600)")) as started:
            pass
        assert started.process.returncode == -9


@pytest.mark.slow
async def test_process_gets_the_environment_without_libpq_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "elsewhere")
    monkeypatch.setenv("KEPT", "1")
    code = "import os; print([os.environ.get(n) for n in ('PGHOST', 'KEPT', 'ADDED')])"
    with trio.fail_after(20):
        async with running(Program, python(code), environ={"ADDED": "2"}) as started:
            assert await started.wait() == 0
            assert started.out.all == ["[None, '1', '2']"]
