"""The certificate for correct and faulty histories, each written by hand."""

import pytest

from airy_trio.verify.writers import GONE, Change, Ledger, LossCertificate


def certificate(sent: list[Change], received: list[tuple[int, Change]], rows: dict[str, int]) -> LossCertificate:
    ledger = Ledger()
    for change in sent:
        ledger.committing([change], 10.0)
        ledger.committed([change])
    for number, (offset, change) in enumerate(received):
        ledger.received(offset, change, 10.5 + number)
    return ledger.certificate(rows)


def test_everything_once_and_in_order_is_clean() -> None:
    found = certificate(
        [("a", 1), ("b", 1), ("a", 2), ("b", GONE)],
        [(1, ("a", 1)), (2, ("b", 1)), (3, ("a", 2)), (4, ("b", GONE))],
        {"a": 2},
    )
    assert found.clean
    assert (found.counts["changes"], found.received) == (4, 4)
    assert found.latencies_s == (0.5, 1.5, 2.5, 3.5)
    assert (found.latency_s(0.5), found.latency_s(0.99)) == (2.5, 3.5)


def test_version_may_be_skipped_if_a_newer_one_follows() -> None:
    assert certificate([("a", 1), ("a", 2)], [(1, ("a", 2))], {"a": 2}).clean


def test_unconfirmed_commit_is_recognised_by_its_row() -> None:
    assert certificate([("b", 1)], [(1, ("a", 1)), (2, ("b", 1))], {"a": 1, "b": 1}).clean
    assert certificate([("b", 1)], [(1, ("b", 1))], {"a": 1, "b": 1}).lost == ["a"]


@pytest.mark.parametrize(
    "received, rows, lost",
    [
        ([(1, ("a", 1))], {"a": 2}, ["a"]),
        ([(1, ("a", 1))], {}, ["a"]),
        ([], {"a": 1}, ["a"]),
        ([(1, ("a", GONE))], {"a": 2}, ["a"]),
        ([(1, ("a", 2)), (2, ("b", 1))], {"a": 2}, ["b"]),
    ],
    ids=["the last version", "a deletion", "everything", "not deleted at all", "never committed"],
)
def test_lost(received: list[tuple[int, Change]], rows: dict[str, int], lost: list[str]) -> None:
    found = certificate([("a", 1)], received, rows)
    assert found.lost == lost
    assert not found.clean


def test_skipped_positions_are_missing() -> None:
    found = certificate([("a", 1)], [(2, ("a", 1)), (5, ("b", 1))], {"a": 1, "b": 1})
    assert found.missing == 3
    assert not found.clean


@pytest.mark.parametrize("again", [(1, ("a", 1)), (2, ("a", 1)), (1, ("a", 2))])
def test_duplicated(again: tuple[int, Change]) -> None:
    found = certificate([("a", 1)], [(1, ("a", 1)), again], {"a": again[1][1]})
    assert found.duplicated == (f"a, at offset {again[0]}",)
    assert not found.clean


@pytest.mark.parametrize(
    "received",
    [[(1, ("a", 2)), (2, ("a", 1)), (3, ("a", 3))], [(1, ("b", 1)), (3, ("c", 1)), (2, ("a", 3))]],
    ids=["of one object", "of positions"],
)
def test_reordered(received: list[tuple[int, Change]]) -> None:
    found = certificate([("a", 1)], received, {"a": 3, "b": 1, "c": 1})
    assert len(found.reordered) == 1
    assert not found.clean


def test_nothing_sent_proves_nothing() -> None:
    found = certificate([], [], {})
    assert not found.clean
    assert found.latency_s(0.99) is None
