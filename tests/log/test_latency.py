"""The histogram of durations."""

import pytest

from airy_trio.log.tail import LATENCY_BUCKETS_S, Latencies


class TestLatencies:
    @pytest.mark.parametrize("index", range(len(LATENCY_BUCKETS_S)))
    def test_a_bucket_includes_its_bound(self, index: int) -> None:
        latencies = Latencies()
        latencies.observe(LATENCY_BUCKETS_S[index])
        latencies.observe(LATENCY_BUCKETS_S[index] * 1.0001)
        assert latencies.counts[index : index + 2] == (1, 1)
        assert sum(latencies.counts) == 2

    def test_many_durations_at_once_and_their_sum(self) -> None:
        latencies = Latencies()
        latencies.observe(2.0, 3)
        latencies.observe(1e9)
        latencies.observe(-5.0)
        assert latencies.total_s == 6.0 + 1e9
        assert latencies.counts[LATENCY_BUCKETS_S.index(2.5)] == 3
        assert (latencies.counts[0], latencies.counts[-1]) == (1, 1)
