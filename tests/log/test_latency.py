"""The times of changes, and the histogram of durations."""

import pytest

from airy_trio.log.tail import ARRIVALS_MAX, LATENCY_BUCKETS_S, Arrivals, Latencies


class TestArrivals:
    def test_an_unknown_event_has_no_time(self) -> None:
        assert Arrivals().at(1) is None

    def test_all_events_of_a_batch_have_its_time(self) -> None:
        arrivals = Arrivals()
        arrivals.add(5, 7, 1.0)
        arrivals.add(8, 8, 2.0)
        assert [arrivals.at(offset) for offset in (4, 5, 6, 7, 8, 9)] == [None, 1.0, 1.0, 1.0, 2.0, None]

    def test_the_earlier_of_two_times_counts(self) -> None:
        arrivals = Arrivals()
        arrivals.add(1, 2, 5.0)
        arrivals.add(1, 2, 3.0)
        arrivals.add(1, 2, 4.0)
        arrivals.add(1, 4, 6.0)  # the same two events, and two more
        assert [arrivals.at(offset) for offset in (1, 2, 3, 4)] == [3.0, 3.0, 6.0, 6.0]

    def test_the_older_half_is_forgotten(self) -> None:
        arrivals = Arrivals()
        for offset in range(1, ARRIVALS_MAX + 1):
            arrivals.add(offset, offset, float(offset))
        assert arrivals.at(1) == 1.0
        arrivals.add(ARRIVALS_MAX + 1, ARRIVALS_MAX + 1, 0.5)
        forgotten = ARRIVALS_MAX // 2
        assert arrivals.at(forgotten) is None
        assert arrivals.at(forgotten + 1) == forgotten + 1
        assert arrivals.at(ARRIVALS_MAX + 1) == 0.5

    def test_clear_forgets_all_times(self) -> None:
        arrivals = Arrivals()
        arrivals.add(7, 9, 1.0)
        arrivals.clear()
        assert arrivals.at(8) is None
        arrivals.add(1, 1, 2.0)
        assert (arrivals.at(1), arrivals.at(2)) == (2.0, None)


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
