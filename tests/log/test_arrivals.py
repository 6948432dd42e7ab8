"""When the newest events came: of two times the earlier counts, and the oldest are forgotten."""

from airy_trio.log.latency import BATCHES_MAX, Arrivals


def test_nothing_is_known_before_it_is_noted() -> None:
    assert Arrivals().at(1) is None


def test_an_event_came_with_its_batch() -> None:
    arrivals = Arrivals()
    arrivals.note(5, 7, 1.0)
    arrivals.note(8, 8, 2.0)
    assert [arrivals.at(offset) for offset in (4, 5, 6, 7, 8, 9)] == [None, 1.0, 1.0, 1.0, 2.0, None]


def test_of_two_times_the_earlier_counts() -> None:
    arrivals = Arrivals()
    arrivals.note(1, 2, 5.0)
    arrivals.note(1, 2, 3.0)
    arrivals.note(1, 2, 4.0)
    arrivals.note(1, 4, 6.0)  # two of them again, and two more
    assert [arrivals.at(offset) for offset in (1, 2, 3, 4)] == [3.0, 3.0, 6.0, 6.0]


def test_the_oldest_are_forgotten() -> None:
    arrivals = Arrivals()
    for offset in range(1, BATCHES_MAX + 1):
        arrivals.note(offset, offset, float(offset))
    assert arrivals.at(1) == 1.0
    arrivals.note(BATCHES_MAX + 1, BATCHES_MAX + 1, 0.5)
    forgotten = BATCHES_MAX // 2
    assert arrivals.at(forgotten) is None
    assert arrivals.at(forgotten + 1) == forgotten + 1
    assert arrivals.at(BATCHES_MAX + 1) == 0.5


def test_another_epoch_begins_with_nothing() -> None:
    arrivals = Arrivals()
    arrivals.note(7, 9, 1.0)
    arrivals.clear()
    assert arrivals.at(8) is None
    arrivals.note(1, 1, 2.0)
    assert (arrivals.at(1), arrivals.at(2)) == (2.0, None)
