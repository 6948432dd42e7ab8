"""The fields of each kind in the mapping of the settings."""

from typing import get_args

import pytest

from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import FIELDS
from airy_trio.settings.reader import BY_FIELD
from tests.settings.reading import fault, read


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_field_of_a_kind_can_be_mapped(kind: Kind) -> None:
    for field in FIELDS[kind]:
        read(f'[database.tables.{kind}]\ncolumns = {{ {field.name} = "theirs" }}\nvalues = {{ {field.name} = {{}} }}')
        read(f'[database.tables.{kind}]\nconstants = {{ {field.name} = "fixed" }}')


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("part", BY_FIELD)
def test_a_field_of_another_kind_is_refused(kind: Kind, part: str) -> None:
    value = "{}" if part == "values" else '"x"'
    path = f"database.tables.{kind}.{part}"
    fields = ", ".join(field.name for field in FIELDS[kind])
    assert fault(f"[database.tables.{kind}]\n{part} = {{ zzz = {value} }}") == (
        f"{path}.zzz: no such field of {kind}; allowed here: {fields}"
    )


def test_nearest_field_is_suggested() -> None:
    assert fault('[database.tables.messages]\ncolumns = { conversation = "thread" }') == (
        "database.tables.messages.columns.conversation: no such field of messages; "
        "did you mean database.tables.messages.columns.conversation_id?"
    )


@pytest.mark.parametrize("part, value", [("columns", '"origin"'), ("values", '{ a = "b" }')])
def test_constant_must_not_be_mapped(part: str, value: str) -> None:
    text = f'[database.tables.messages]\nconstants = {{ source = "chat" }}\n{part} = {{ source = {value} }}'
    assert fault(text) == (f"database.tables.messages.{part}.source: source is in constants too; remove one of the two")


def test_a_column_may_have_values() -> None:
    read('[database.tables.messages]\ncolumns = { source = "origin" }\nvalues = { source = { a = "b" } }')
