"""Rows of metadata as one nested object: order, conflicts, unusable rows."""

import math
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.capture.feed import MetadataEntry, Value
from airy_trio.events import values
from airy_trio.events.translate import Nested, nest
from airy_trio.events.values import NESTING_MAX, RowFault
from tests.events.rows import ANY_VALUE, BERLIN, entry, strictly_read


def nested(*entries: MetadataEntry) -> Nested:
    return nest(entries, UTC, "conversation:c1")


def written(*entries: MetadataEntry) -> str:
    result = nested(*entries)
    assert result.faults == ()
    return result.metadata


def test_no_rows_are_an_empty_object() -> None:
    assert nested() == Nested(metadata=values.check("{}"), faults=(), value_faults=0)


def test_dots_nest() -> None:
    assert (
        written(
            entry("contact.displayName", "Grace", updated_at=1),
            entry("isUserTyping", "true", "bool", 2),
            entry("contact.address.city", "Köln", updated_at=3),
        )
        == '{"contact":{"displayName":"Grace","address":{"city":"Köln"}},"isUserTyping":true}'
    )


@pytest.mark.parametrize(
    "key,expected",
    [
        ("", '{"":1}'),
        (".", '{"":{"":1}}'),
        ("a.", '{"a":{"":1}}'),
        ("a..b", '{"a":{"":{"b":1}}}'),
        ('q"', '{"q\\"":1}'),
        (7, '{"7":1}'),
    ],
)
def test_every_part_of_a_key_is_a_name(key: Value, expected: str) -> None:
    assert written(entry(key, "1", "number")) == expected


@pytest.mark.parametrize(
    "value,value_type,expected",
    [
        ("Grace", "text", '"Grace"'),
        ("Grace", None, '"Grace"'),
        ("1", None, '"1"'),
        (5, "text", '"5"'),
        (1.5, "text", '"1.5"'),
        (True, "text", '"true"'),
        ("1", "number", "1"),
        ("-0.50e+07", "number", "-0.50e+07"),
        ("9" * 5000, "number", "9" * 5000),
        (12, "number", "12"),
        (1.5, "number", "1.5"),
        ("true", "bool", "true"),
        ("FALSE", "bool", "false"),
        ("1", "bool", "true"),
        ("0", "bool", "false"),
        (1, "bool", "true"),
        (False, "bool", "false"),
        ("", "nullValue", "null"),
        ("null", "nullValue", "null"),
        (None, "nullValue", "null"),
        (None, "text", "null"),
        (None, "number", "null"),
        (None, "object", "null"),
        (None, None, "null"),
        (None, "unheard-of", "null"),
        (' [1.0, {"a": 2}] ', "array", ' [1.0, {"a": 2}] '),
        ("{}", "object", "{}"),
    ],
)
def test_values_that_fit_their_type(value: Value, value_type: Value, expected: str) -> None:
    result = nested(entry("k", value, value_type))
    assert result == Nested(metadata=values.check(f'{{"k":{expected}}}'), faults=(), value_faults=0)


@pytest.mark.parametrize(
    "value,value_type",
    [
        ("", "number"),
        (" 1", "number"),
        ("1\n", "number"),
        ("01", "number"),
        ("+1", "number"),
        (".5", "number"),
        ("1.", "number"),
        ("0x10", "number"),
        ("NaN", "number"),
        ("٣", "number"),
        ("yes", "bool"),
        ("t", "bool"),
        ("2", "bool"),
        ("x", "nullValue"),
        ("{}", "array"),
        ("[1,]", "array"),
        ("[NaN]", "array"),
        ("[]", "object"),
        ("1", "object"),
        ("{", "object"),
        ("[" * NESTING_MAX + "]" * NESTING_MAX, "array"),
        ("x", "Text"),
        ("x", ""),
        ("x", "json"),
        ("x", 1),
        ("x", b"\xff"),
    ],
)
def test_value_that_does_not_fit_becomes_a_counted_string(value: str, value_type: Value) -> None:
    result = nested(entry("k", value, value_type), entry("other", "1", "number"))
    assert strictly_read(result.metadata) == {"k": value, "other": "1"}
    assert (result.value_faults, result.faults) == (1, ())


@pytest.mark.parametrize("value,expected", [(math.inf, "inf"), (math.nan, "nan"), (True, "true")])
def test_invalid_json_number(value: Value, expected: str) -> None:
    result = nested(entry("k", value, "number"))
    assert (strictly_read(result.metadata), result.value_faults) == ({"k": expected}, 1)


def test_a_later_scalar_replaces_an_earlier_object() -> None:
    assert written(entry("a.b", "x", updated_at=1), entry("a", "y", updated_at=2)) == '{"a":"y"}'
    assert written(entry("a.b", "x", updated_at=1), entry("a", None, updated_at=2)) == '{"a":null}'
    assert written(entry("a.b", "x", updated_at=1), entry("a", '{"c":1}', "object", 2)) == '{"a":{"c":1}}'


def test_a_later_object_replaces_an_earlier_scalar() -> None:
    assert written(entry("a.b", "x", updated_at=2), entry("a", "y", updated_at=1)) == '{"a":{"b":"x"}}'
    assert written(entry("a.b", "x", updated_at=2), entry("a", "[1]", "array", 1)) == '{"a":{"b":"x"}}'
    assert written(entry("a.b", "x", updated_at=2), entry("a", "{", "text", 1)) == '{"a":{"b":"x"}}'


def test_later_key_is_added_to_an_earlier_object() -> None:
    whole = entry("a", '{ "b" : {"c": 1.50}, "d": [ 1 ], "\\ud800": 0 }', "object", 1)
    assert written(whole, entry("a.b.e", "x", updated_at=2)) == ('{"a":{"b":{"c":1.50,"e":"x"},"d":[ 1 ],"\\ud800":0}}')


@pytest.mark.parametrize(
    "earlier,later",
    [
        (1, 2),
        (None, "-infinity"),
        ("-infinity", "0044-03-15 00:00:00+00 BC"),
        ("0044-03-15 00:00:00+00 BC", "0001-01-01 00:00:00+00"),
        ("2020-10-25 21:24:54.000001+00", "2020-10-25 21:24:54.000002+00"),
        ("9999-12-31 23:59:59+00", "10000-01-01 00:00:00+00"),
        ("2020-10-25T21:24:54Z", 1603661094001),
        ("294276-12-31 23:59:59+00", "infinity"),
    ],
)
def test_rows_apply_in_the_order_of_their_time(earlier: Value, later: Value) -> None:
    assert written(entry("a", "old", updated_at=earlier), entry("a.b", "new", updated_at=later)) == '{"a":{"b":"new"}}'
    assert written(entry("a.b", "old", updated_at=earlier), entry("a", "new", updated_at=later)) == '{"a":"new"}'
    assert written(entry("a", "new", updated_at=later), entry("a.b", "old", updated_at=earlier)) == '{"a":"new"}'


def test_time_without_zone_uses_the_tables_zone() -> None:
    rows = (
        entry("a", "at ten in UTC", updated_at="2020-07-01 12:00:00"),
        entry("a.b", "at eleven in UTC", updated_at="2020-07-01 11:00:00Z"),
    )
    assert nest(rows, BERLIN, "").metadata == '{"a":{"b":"at eleven in UTC"}}'
    assert nest(rows, UTC, "").metadata == '{"a":"at ten in UTC"}'


@pytest.mark.parametrize("at", [None, 5, "infinity"])
def test_ties_go_by_key(at: Value) -> None:
    rows = entry("a.b", "x", updated_at=at), entry("a", "y", updated_at=at)
    assert written(*rows) == written(*reversed(rows)) == '{"a":{"b":"x"}}'


@pytest.mark.parametrize(
    "bad,key,reason",
    [
        (entry(None, "x"), "NULL", "key is NULL"),
        (entry(b"\xff", "x"), r"b'\xff'", "key is not UTF-8 text"),
        (entry("\ud800", "x"), r"'\ud800'", "key is not UTF-8 text"),
        (entry("k", b"\xffsecret"), "k", "value is not UTF-8 text"),
        (entry("k", "secret\ud800", "number"), "k", "value is not UTF-8 text"),
        (entry("k", 10**5000, "number"), "k", "value has too many digits"),
        (entry("k", "x", updated_at="soon"), "k", "updated_at is not a time"),
        (entry("k", "x", updated_at=b""), "k", "updated_at is not a time"),
        (entry("k" + "." * NESTING_MAX, "x"), "k" + "." * 78 + "…", "key is nested deeper than 500"),
        (entry("." * 1_000_000, "x"), "." * 79 + "…", "key is nested deeper than 500"),
    ],
)
def test_unusable_row_is_skipped_and_reported(bad: MetadataEntry, key: str, reason: str) -> None:
    result = nested(entry("before", "1"), bad, entry("z-after", "2"))
    assert result.metadata == '{"before":"1","z-after":"2"}'
    assert result.faults == (RowFault(table="metadata", key=f"conversation:c1:{key}", reason=reason),)


def test_the_nesting_limit_counts_key_and_value_together() -> None:
    parts = NESTING_MAX - 1
    deep = "x" + ".x" * (parts - 1)
    fits = nested(entry(deep, "[]", "array"))
    assert (fits.value_faults, values.check(fits.metadata)) == (0, fits.metadata)
    beyond = nested(entry(deep, "[[]]", "array"))
    assert (beyond.value_faults, beyond.metadata) == (1, '{"x":' * parts + '"[[]]"' + "}" * parts)
    deepest = nested(entry(deep + ".x", "1", "number"))
    assert (deepest.faults, values.check(deepest.metadata)) == ((), deepest.metadata)


SMALL_ENTRIES = st.lists(
    st.builds(
        MetadataEntry,
        key=st.text("ab.", max_size=4),
        value=st.sampled_from(["1", "x", "[1]", '{"a": {"b": 1.0}}', '{"b":2}', None]),
        value_type=st.sampled_from(["text", "number", "object", "array", None]),
        updated_at=st.sampled_from([None, 1, 2, "infinity"]),
    ),
    max_size=6,
)


@given(SMALL_ENTRIES, st.randoms(use_true_random=False))
def test_order_of_reading_does_not_matter(entries: list[MetadataEntry], random: st.DataObject) -> None:
    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert nested(*shuffled) == nested(*entries)


@given(SMALL_ENTRIES)
def test_tree_equals_assignment_in_order(entries: list[MetadataEntry]) -> None:
    def model(row: MetadataEntry) -> object:
        match row.value, row.value_type:
            case (None, _):
                return None
            case ("1", "number") | ("[1]", "array"):
                return strictly_read(str(row.value))
            case (str() as text, "object") if text.startswith("{"):
                return strictly_read(text)
            case _:
                return row.value

    def rank(row: MetadataEntry) -> tuple[float, str, str]:
        at = row.updated_at
        time = -1.0 if at is None else math.inf if at == "infinity" else float(at)
        alone = nested(MetadataEntry(key="k", value=row.value, value_type=row.value_type, updated_at=None)).metadata
        return time, str(row.key), alone

    root: dict[str, object] = {}
    for row in sorted(entries, key=rank):
        *above, last = str(row.key).split(".")
        node = root
        for name in above:
            below = node.get(name)
            if not isinstance(below, dict):
                below = node[name] = {}
            node = below
        node[last] = model(row)
    assert strictly_read(nested(*entries).metadata) == root


@given(st.lists(st.builds(MetadataEntry, key=ANY_VALUE, value=ANY_VALUE, value_type=ANY_VALUE, updated_at=ANY_VALUE)))
def test_any_rows_make_an_object(entries: list[MetadataEntry]) -> None:
    result = nested(*entries)
    assert isinstance(strictly_read(result.metadata.encode()), dict)
    assert len(result.faults) + result.value_faults <= len(entries)
