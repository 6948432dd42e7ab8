"""Each list of the kinds of objects or types of events is complete, also in files that no type checker reads."""

import inspect
import re
from typing import get_args

import pytest

from airy_trio import terminal
from airy_trio.admin.endpoints import CONSOLE
from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import DELETABLE, FIELDS, KINDS, SINGULAR, TablesOptions
from airy_trio.cli.commands import TYPES as NAMES
from airy_trio.events.models import TYPES, Event
from tests.application import only

EVENTS = get_args(Event)
CASES = re.compile(r'case "(\w+\.\w+)"')


def test_every_kind_has_fields_options_and_a_name() -> None:
    assert set(KINDS) == FIELDS.keys() == SINGULAR.keys() == TablesOptions().mapped.keys()
    assert tuple(SINGULAR.values()) == NAMES


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_log_has_columns_for_the_fields(kind: Kind) -> None:
    assert 1 <= sum(field.key for field in FIELDS[kind]) <= 2
    assert sum(field.carried for field in FIELDS[kind]) <= 2


def test_event_types_are_those_of_the_kinds() -> None:
    assert {type_ for type_ in TYPES if type_.endswith(".updated")} == {f"{name}.updated" for name in NAMES}
    deletions = {f"{SINGULAR[kind]}.deleted" for kind in DELETABLE}
    assert {type_ for type_ in TYPES if not type_.endswith(".updated")} == deletions


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_of_a_conversation_has_its_channel(event: type) -> None:
    """A user with limited channels would never receive an event without its channel."""
    assert getattr(event, "conversation_id") is None or getattr(event, "channel_id") is not None  # noqa: B009 - of any class


def test_terminal_and_console_know_every_type() -> None:
    assert terminal.COLOURS.keys() == set(NAMES)
    assert set(CASES.findall(inspect.getsource(terminal))) >= {f"{name}.updated" for name in NAMES}
    words = (CONSOLE / "words.js").read_text()
    assert re.search(r"KINDS = \[(.*)\]", words)[1].replace('"', "").split(", ") == list(NAMES)  # type: ignore[index]
    assert set(CASES.findall(words)) == set(TYPES)
    styles = (CONSOLE / "console.css").read_text()
    for name in NAMES:
        assert f"  --{name}: light-dark(" in styles
        assert f'[data-kind="{name}"] {{ --kind: var(--{name}); }}' in styles


def test_unmapped_kinds_are_those_that_a_test_does_not_name() -> None:
    assert only(tags="").count('name = ""') == len(KINDS) - 1
