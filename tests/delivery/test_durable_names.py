"""The limit on names of durable subscriptions: by user, in time, and in total."""

import pytest

from airy_trio.delivery import durables
from airy_trio.delivery.durables import DurableNames


def test_names_at_the_limit_and_one_beyond() -> None:
    names = DurableNames(2, retain_s=10)
    assert [names.take("ann", name, 0) for name in ("a", "b", "c", "a", "b")] == [True, True, False, True, True]
    assert names.take("bob", "c", 0)


def test_names_unused_for_the_retention_are_forgotten() -> None:
    names = DurableNames(2, retain_s=10)
    assert names.take("ann", "a", 0)
    assert names.take("ann", "b", 5)
    assert names.take("ann", "a", 9)
    assert not names.take("ann", "c", 15)
    assert names.take("ann", "c", 15.1)
    assert not names.take("ann", "b", 15.1)
    assert len(names) == 2


def test_memory_is_bounded_by_forgetting_the_oldest_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durables, "NAMES_MAX", 4)
    names = DurableNames(2, retain_s=10)
    for owner in ("ann", "bob", "ann", "eve"):
        names.take(owner, "a", 0)
        names.take(owner, "b", 0)
    assert len(names) == 4
    assert not names.take("ann", "c", 0)
    assert names.take("bob", "c", 0)
