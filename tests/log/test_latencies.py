"""The histogram of latencies: what lies on a bound is in its bucket."""

import pytest

from airy_trio.log.latency import BOUNDS_S, Latencies


@pytest.mark.parametrize("index", range(len(BOUNDS_S)))
def test_a_bucket_has_its_bound_and_not_what_lies_beyond(index: int) -> None:
    latencies = Latencies()
    latencies.observe(BOUNDS_S[index])
    latencies.observe(BOUNDS_S[index] * 1.0001)
    assert latencies.counts[index : index + 2] == (1, 1)
    assert sum(latencies.counts) == 2


def test_many_at_once_and_their_sum() -> None:
    latencies = Latencies()
    latencies.observe(2.0, 3)
    latencies.observe(1e9)
    latencies.observe(-5.0)
    assert latencies.total_s == 6.0 + 1e9
    assert latencies.counts[BOUNDS_S.index(2.5)] == 3
    assert (latencies.counts[0], latencies.counts[-1]) == (1, 1)
