"""Negotiated heart-beats, and when a client is silent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.stomp.frames import SILENT_AFTER_INTERVALS, HeartBeat, negotiate

INTERVALS = st.integers(min_value=0, max_value=10**18 - 1)


@pytest.mark.parametrize(
    "header, outgoing_s, incoming_s",
    [
        (None, None, None),
        ("0,0", None, None),
        ("10000,10000", 30, 30),
        ("60000,10000", 30, 60),
        ("10000,60000", 60, 30),
        ("0,10000", 30, None),
        ("10000,0", None, 30),
        ("1,1", 30, 30),
        (" 10000 , 45000 ", 45, 30),
    ],
)
def test_each_direction_is_the_longer_of_both_or_none(
    header: str | None, outgoing_s: float | None, incoming_s: float | None
) -> None:
    assert negotiate(header, 30_000) == HeartBeat(outgoing_s=outgoing_s, incoming_s=incoming_s)


def test_a_server_that_offers_none_has_none() -> None:
    assert negotiate("10000,10000", 0) == HeartBeat()


@pytest.mark.parametrize(
    "header", ["", "1", "1,", ",1", "1,2,3", "-1,0", "1.5,0", "a,b", "1;2", "1,2\n", "\u0661,\u0662", "9" * 19 + ",0"]
)
def test_a_header_that_is_not_two_numbers_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="not two numbers"):
        negotiate(header, 30_000)


@given(can_send_ms=INTERVALS, wants_ms=INTERVALS, server_ms=INTERVALS)
def test_agreed_intervals_respect_both_sides(can_send_ms: int, wants_ms: int, server_ms: int) -> None:
    agreed = negotiate(f"{can_send_ms},{wants_ms}", server_ms)
    assert (agreed.incoming_s is None) == (can_send_ms == 0 or server_ms == 0)
    assert (agreed.outgoing_s is None) == (wants_ms == 0 or server_ms == 0)
    if agreed.incoming_s is not None:
        assert agreed.incoming_s >= can_send_ms / 1000
    if agreed.outgoing_s is not None:
        assert agreed.outgoing_s >= server_ms / 1000


def test_a_client_is_silent_after_two_and_a_half_intervals() -> None:
    assert SILENT_AFTER_INTERVALS == 2.5
    assert negotiate("10000,0", 30_000).silent_after_s == 75
    assert negotiate("60000,0", 30_000).silent_after_s == 150


def test_client_without_heart_beats_is_never_silent() -> None:
    assert negotiate("0,10000", 30_000).silent_after_s is None
