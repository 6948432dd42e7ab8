"""The pace of a benchmark's producer: at a rate, or in a closed loop."""

import struct

import pytest

from bench.pace import BURSTS, NATURAL, STRICT, Pace, Progress, at_rate


@pytest.mark.parametrize(
    "pace, produced, reached, due",
    [
        (STRICT, 0, 0, 1),
        (STRICT, 63, 0, 1),
        (STRICT, 64, 0, 0),
        (NATURAL, 0, 0, 2),
        (NATURAL, 2, 0, 0),
        (NATURAL, 2, 1, 1),
        (BURSTS, 150, 0, 50),
        (BURSTS, 151, 0, 0),
        (BURSTS, 200, 50, 50),
    ],
)
def test_closed_loop_fills_its_window(pace: Pace, produced: int, reached: int, due: int) -> None:
    assert pace.due(produced, reached, 1.0) == due


def test_rate_follows_the_clock_alone() -> None:
    pace = at_rate(100)
    assert [pace.due(0, 0, elapsed_s) for elapsed_s in (0.0, 0.009, 0.01, 1.0)] == [0, 0, 1, 100]
    assert pace.due(101, 0, 1.0) == 0


@pytest.mark.parametrize("pace", [STRICT, NATURAL, BURSTS, at_rate(7)])
def test_a_pace_survives_the_command_line(pace: Pace) -> None:
    arguments = [*pace.arguments(), *(["--alone"] if pace.alone else [])]
    read = Pace.of(Pace.parser("").parse_args(arguments))
    assert (read.least, read.most, read.window, read.rate, read.alone) == (
        pace.least,
        pace.most,
        pace.window,
        pace.rate,
        pace.alone,
    )


def test_progress_begins_with_a_record_and_ends_with_the_pipe() -> None:
    progress = Progress()
    progress.update(struct.pack("=Q", 0))
    assert (progress.begun, progress.ended, progress.reached) == (True, False, 0)
    progress.update(struct.pack("=3Q", 4, 5, 9))
    assert progress.reached == 9
    progress.update(b"")
    assert progress.ended
