"""Pauses and log lines while something is unavailable."""

import structlog
from structlog.testing import capture_logs

from airy_trio.retry import Backoff, Outage


def test_pauses_double_up_to_the_maximum() -> None:
    backoff = Backoff(0.1, 0.5)
    assert [backoff.next_s() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    backoff.reset()
    assert backoff.next_s() == 0.1


def test_outage_is_logged_once_at_its_begin_and_end() -> None:
    outage = Outage(structlog.get_logger(), "store unavailable", "store available again")
    with capture_logs() as lines:
        outage.end()
        outage.begin("refused")
        outage.begin("timed out")
        reasons = [outage.reason]
        outage.end()
        outage.end()
        reasons.append(outage.reason)
        outage.begin("refused again")
    assert reasons == ["timed out", None]
    assert [(line["event"], line["log_level"], line.get("reason")) for line in lines] == [
        ("store unavailable", "warning", "refused"),
        ("store available again", "info", None),
        ("store unavailable", "warning", "refused again"),
    ]
