"""Times of rows in the wire format: text and epoch agree, zones apply, values without order are faults."""

import math
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.capture.feed import Value
from airy_trio.events.values import UnfitValueError, instant, wire_time
from tests.events.rows import ANY_VALUE, BERLIN

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "value,expected",
    [
        ("2020-10-25T21:24:54.560Z", "2020-10-25T21:24:54.560Z"),
        ("2020-10-25 21:24:54.56+00", "2020-10-25T21:24:54.560Z"),
        ("2020-10-25 22:24:54.5+01", "2020-10-25T21:24:54.500Z"),
        ("2020-10-25T22:18:22+00:53:28", "2020-10-25T21:24:54.000Z"),
        ("2020-10-25 21:24:54", "2020-10-25T21:24:54.000Z"),
        ("2020-10-25", "2020-10-25T00:00:00.000Z"),
        ("20201025T212454Z", "2020-10-25T21:24:54.000Z"),
        ("2020-10-25T21:24:54.5609999Z", "2020-10-25T21:24:54.560Z"),
        ("1969-12-31T23:59:59.9999Z", "1969-12-31T23:59:59.999Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
        ("9999-12-31T23:59:59.9999Z", "9999-12-31T23:59:59.999Z"),
        (1603661094560, "2020-10-25T21:24:54.560Z"),
        ("00000000000000", "1970-01-01T00:00:00.000Z"),
        ("99999999999999", "5138-11-16T09:46:39.999Z"),
        ("253402300799999", "9999-12-31T23:59:59.999Z"),
        ("1603661094560", "2020-10-25T21:24:54.560Z"),
        ("+1603661094560.9999", "2020-10-25T21:24:54.560Z"),
        ("1603661094560.", "2020-10-25T21:24:54.560Z"),
        (1603661094560.9, "2020-10-25T21:24:54.560Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        ("-1", "1969-12-31T23:59:59.999Z"),
        (-1.5, "1969-12-31T23:59:59.998Z"),
        ("-1.5", "1969-12-31T23:59:59.998Z"),
        ("-0.0001", "1969-12-31T23:59:59.999Z"),
        ("-1.0000000", "1969-12-31T23:59:59.999Z"),
        ("20201025", "1970-01-01T05:36:41.025Z"),
        (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ("253402300799999.9999", "9999-12-31T23:59:59.999Z"),
    ],
)
def test_wire_times(value: Value, expected: str) -> None:
    assert wire_time(value, UTC, "sent_at") == expected


@pytest.mark.parametrize(
    "value,expected",
    [
        ("2020-07-01 12:00:00", "2020-07-01T10:00:00.000Z"),
        ("2020-12-01 12:00:00.25", "2020-12-01T11:00:00.250Z"),
        ("2020-10-25 02:30:00", "2020-10-25T00:30:00.000Z"),  # occurs twice: the earlier
        ("2020-07-01 12:00:00Z", "2020-07-01T12:00:00.000Z"),
        (0, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_zone_applies_to_text_without_zone(value: Value, expected: str) -> None:
    assert wire_time(value, BERLIN, "sent_at") == expected


@pytest.mark.parametrize(
    "value",
    [
        "infinity",
        "253402300800000",
        "١٦٠٣٦٦١٠٩٤٥٦٠",
        "-infinity",
        "NaN",
        "",
        "now",
        " 2020-10-25",
        "2020-02-30",
        "0044-03-15 00:00:00 BC",
        "1e12",
        "12020-10-25 21:24:54",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "2020-10-25 21:24:54 BC",
        "\uff11\uff19\uff17\uff10-01-01",
        "٣",
        "\ud800",
        "9" * 18,
        "9" * 5000,
        "-62135596800000.5",
        -62_135_596_800_001,
        253_402_300_800_000,
        10**5000,
        math.inf,
        -math.inf,
        math.nan,
        1e300,
        -1e300,
        True,
        False,
        b"2020-10-25",
    ],
)
def test_invalid_times(value: Value) -> None:
    with pytest.raises(UnfitValueError, match=r"^sent_at is not a time") as caught:
        wire_time(value, UTC, "sent_at")
    assert len(str(caught.value)) < 80  # it does not contain the value


def test_zone_that_moves_a_time_out_of_range() -> None:
    with pytest.raises(UnfitValueError, match=r"^sent_at is not a time between the years 1 and 9999$"):
        wire_time("0001-01-01 00:00:00", BERLIN, "sent_at")


@pytest.mark.parametrize("of", [wire_time, instant])
def test_null_is_not_a_time(of: type) -> None:
    with pytest.raises(UnfitValueError, match=r"^sent_at is NULL$"):
        of(None, UTC, "sent_at")


@given(st.datetimes(timezones=st.just(UTC)))
def test_text_and_epoch_agree_to_the_millisecond(moment: datetime) -> None:
    expected = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    epoch_ms = (moment - EPOCH) // timedelta(milliseconds=1)
    assert wire_time(moment.isoformat(), UTC, "sent_at") == expected
    assert wire_time(str(moment), BERLIN, "sent_at") == expected
    assert wire_time(epoch_ms, BERLIN, "sent_at") == expected
    assert wire_time(str(epoch_ms), BERLIN, "sent_at") == expected


@given(ANY_VALUE)
def test_any_value_is_a_wire_time_or_a_fault(value: Value) -> None:
    try:
        written = wire_time(value, BERLIN, "sent_at")
    except UnfitValueError:
        return
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written, re.ASCII)
    datetime.fromisoformat(written)


IN_ORDER: list[Value] = [
    "-infinity",
    "4713-01-01 00:00:00+00 BC",
    "0044-03-15 00:00:00+00:53:28 BC",
    "0001-12-31 23:59:59+00 BC",
    "0001-01-01 00:00:00+00",
    -1.5,
    "-1",
    "-0.001",
    0,
    "0.001",
    "1970-01-01T00:00:00.000002Z",
    "1603661094560.123",
    "1603661094560.1249",
    "9999-12-31 23:59:59+00",
    "10000-01-01 00:00:00+00",
    "12020-10-25 21:24:54.5+00",
    "294276-12-31 23:59:59.999999+00",
    10**5000,
    "Infinity",
]


def test_instants_are_ordered_as_the_times_are() -> None:
    instants = [instant(value, UTC, "updated_at") for value in IN_ORDER]
    assert instants == sorted(set(instants))


@pytest.mark.parametrize(
    "text,expected_days",
    [
        ("0001-12-31 00:00:00 BC", -719_163),  # the day before 0001-01-01
        ("0002-12-31 00:00:00 BC", -719_163 - 366),  # 1 BC is a leap year
        ("10000-01-01 00:00:00", 2_932_897),  # the day after 9999-12-31
    ],
)
def test_years_out_of_range_are_exact(text: str, expected_days: int) -> None:
    assert instant(text, UTC, "updated_at") == expected_days * 86_400 * 1_000_000


def test_instants_hold_microseconds() -> None:
    expected = 1_603_661_094_560_123
    assert instant("2020-10-25 21:24:54.560123+00", UTC, "updated_at") == expected
    assert instant("1603661094560.1239", UTC, "updated_at") == expected
    assert instant(1603661094560, UTC, "updated_at") == 1_603_661_094_560_000
    assert instant(-0.5, UTC, "updated_at") == -500
    assert instant("-0.0005", UTC, "updated_at") == -1


@pytest.mark.parametrize(
    "value", ["", "soon", "BC", "2020-02-30", "2020-13-01 BC", "1e5", math.nan, True, b"1", "\ud800"]
)
def test_values_without_order(value: Value) -> None:
    with pytest.raises(UnfitValueError, match=r"^updated_at is not a time$"):
        instant(value, UTC, "updated_at")


@given(ANY_VALUE.filter(lambda value: value is not None))
def test_any_value_has_an_instant_or_is_a_fault(value: Value) -> None:
    try:
        found = instant(value, BERLIN, "updated_at")
    except UnfitValueError:
        return
    assert isinstance(found, int) or math.isinf(found)
