"""Resume points as text: each parses back to itself, and other text is rejected."""

from functools import partial

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.capture.change_log import PostgresPoint, SqlitePoint, identified_point
from airy_trio.capture.feed import ResumePointLost, ResumePointTooNew
from airy_trio.capture.polling import Watermarks

SNAPSHOTS = st.builds(
    lambda xmin, xmax, xip: f"{xmin}:{xmax}:{','.join(map(str, xip))}",
    st.integers(1, 2**63),
    st.integers(1, 2**63),
    st.lists(st.integers(1, 2**63), max_size=3),
)
POSTGRES = st.builds(
    PostgresPoint,
    system=st.text(),
    timeline=st.text(),
    snapshot=SNAPSHOTS,
    place=st.text(),
    target=SNAPSHOTS | st.just(""),
    txid=st.integers(0, 2**63).map(str),
    at=st.floats(allow_nan=False),
    source=st.text(),
    mark=st.text(),
)
SQLITE = st.builds(SqlitePoint, seq=st.integers(0, 2**63), token=st.text(), source=st.text(), mark=st.text())


@given(POSTGRES)
def test_a_postgres_point_survives_as_text(point: PostgresPoint) -> None:
    assert PostgresPoint.parse(str(point)) == point
    with pytest.raises(ResumePointLost):
        SqlitePoint.parse(str(point))


@given(SQLITE)
def test_an_sqlite_point_survives_as_text(point: SqlitePoint) -> None:
    assert SqlitePoint.parse(str(point)) == point
    with pytest.raises(ResumePointLost):
        PostgresPoint.parse(str(point))


@given(st.text() | st.sampled_from(["", "[]", "{}", "null", '["1",2]', '{"system":"1","snapshot":"x"}']))
def test_unreadable_text_is_a_lost_resume_point(text: str) -> None:
    for kind in (PostgresPoint, SqlitePoint):
        with pytest.raises(ResumePointLost, match="another kind of database"):
            kind.parse(text)


@pytest.mark.parametrize(
    "text, point",
    [
        (
            '{"system":"1","timeline":"2","snapshot":"3:3:","place":"4.5","target":"","seq":6}',
            PostgresPoint(system="1", timeline="2", snapshot="3:3:", place="4.5"),
        ),
        ('{"system":"1","timeline":"2","snapshot":"3:3:"}', PostgresPoint(system="1", timeline="2", snapshot="3:3:")),
        ('[7,"token"]', SqlitePoint(7, "token")),
        ('{"seq":7,"token":"token"}', SqlitePoint(7, "token")),
    ],
)
def test_points_of_older_formats_are_read(text: str, point: PostgresPoint | SqlitePoint) -> None:
    assert type(point).parse(text) == point
    assert identified_point(text, "ours") == str(evolve(point, source="ours"))


@pytest.mark.parametrize("point", [PostgresPoint(system="1", timeline="2", snapshot="3:3:"), SqlitePoint(7, "token")])
def test_point_of_a_newer_format_names_a_newer_version(point: PostgresPoint | SqlitePoint) -> None:
    newer = str(point).replace('"format":1', '"format":2')
    for read in (PostgresPoint.parse, SqlitePoint.parse, partial(identified_point, source=""), Watermarks.parse):
        with pytest.raises(ResumePointTooNew, match="a newer airy-trio has written the event log"):
            read(newer)


def test_the_parts_of_a_snapshot() -> None:
    point = PostgresPoint(system="1", timeline="2", snapshot="10:20:12,15")
    assert (point.next_transaction, point.in_progress) == (20, ["12", "15"])
    assert PostgresPoint(system="1", timeline="2", snapshot="10:10:").in_progress == []


@pytest.mark.parametrize(
    "snapshot, has",
    [
        ("10:20:10,15", True),
        ("10:20:10", True),
        ("30:30:", True),
        ("10:30:10,15,20,29", True),
        ("10:20:10,12,15", False),
        ("10:30:10,12", False),
        ("10:19:10,15", False),
        ("9:9:", False),
    ],
)
def test_has_read_compares_the_transactions_of_two_snapshots(snapshot: str, *, has: bool) -> None:
    other = PostgresPoint(system="1", timeline="2", snapshot="10:20:10,15")
    assert evolve(other, snapshot=snapshot).has_read(other) is has
