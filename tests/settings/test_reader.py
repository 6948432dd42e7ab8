"""The reader with any document: it returns options, or faults with the path of the wrong key."""

from datetime import UTC, date, datetime, time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from airy_trio.settings import Settings
from airy_trio.settings.reader import dotted, options_of, read

TOML_VALUES = st.recursive(
    st.none().map(lambda _: "x")
    | st.text()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([date(1979, 5, 27), time(7, 32), datetime(1979, 5, 27, tzinfo=UTC)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
OPTIONS = tuple(options_of(Settings))


def document_of(items: dict[tuple[str | int, ...], Any]) -> dict[str, Any]:
    """Make a document with these values at these paths; a value on the path of a deeper one is replaced."""
    document: dict[str, Any] = {"database": {"url": "sqlite:///a.db"}}
    for path, value in items.items():
        table = document
        for key in path[:-1]:
            child = table.get(str(key))
            if not isinstance(child, dict):
                child = table[str(key)] = {}
            table = child
        table[str(path[-1])] = value
    return document


@given(st.dictionaries(st.sampled_from(OPTIONS), TOML_VALUES, max_size=4))
def test_any_values_at_known_keys_are_options_or_faults(items: dict[tuple[str | int, ...], Any]) -> None:
    options, faults = read(document_of(items), Settings, {})
    assert (options is None) == bool(faults)
    assert all(fault.isprintable() for fault in faults)
    for fault in faults:
        section = fault.partition(":")[0]
        assert any(dotted(path).startswith(section) or section.startswith(dotted(path)) for path in items), fault


@given(st.dictionaries(st.text(), TOML_VALUES, max_size=4))
def test_any_document_is_options_or_faults(document: dict[str, Any]) -> None:
    options, faults = read({"database": {"url": "sqlite:///a.db"}, **document}, Settings, {})
    unknown = [key for key in document if (key,) not in OPTIONS]
    assert (options is None) == bool(faults)
    assert len(faults) >= len(unknown)
