"""Pauses and log lines while something is unavailable."""

import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.retry import Backoff, Outage


def test_pauses_double_up_to_the_maximum() -> None:
    backoff = Backoff(0.1, 0.5)
    assert [backoff.next_s() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    backoff.reset()
    assert backoff.next_s() == 0.1


async def test_outage_is_logged_once_at_its_begin_and_end() -> None:  # noqa: ASYNC124 - runs in Trio, whose clock it uses
    outage = Outage(structlog.get_logger(), "store unavailable", "store available again")
    with capture_logs() as lines:
        outage.end()
        outage.begin("refused", port=5432)
        outage.begin("timed out")
        reasons = [outage.reason]
        outage.end()
        outage.end()
        reasons.append(outage.reason)
        outage.begin("refused again")
    assert reasons == ["timed out", None]
    assert lines == [
        {"event": "store unavailable", "log_level": "warning", "reason": "refused", "port": 5432},
        {"event": "store available again", "log_level": "info"},
        {"event": "store unavailable", "log_level": "warning", "reason": "refused again"},
    ]


async def test_outage_has_pauses_and_a_begin(autojump_clock: MockClock) -> None:
    outage = Outage(structlog.get_logger(), "store unavailable", backoff=Backoff(0.1, 0.5))
    now = trio.current_time()
    for pause_s in (0.1, 0.2):
        assert outage.begin("refused") == pause_s
        await trio.sleep(pause_s)
    begun_at = outage.since
    assert begun_at == now
    with capture_logs() as lines:
        outage.end()
    assert (lines, outage.since) == ([], None)
    assert outage.begin("refused") == 0.1
