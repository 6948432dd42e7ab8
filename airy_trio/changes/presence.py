"""What rows say of their objects: as they are, or gone. Rows come by the mapping's columns, fields under our names."""

from collections.abc import Mapping
from typing import Any, assert_never

from airy_trio.changes.driver import Row
from airy_trio.changes.messages import MessageColumns
from airy_trio.changes.rows import (
    ChangedObject,
    Channel,
    ChannelGone,
    MessageGone,
    MetadataEntry,
    Tag,
    TagGone,
    Value,
)
from airy_trio.changes.tables import Key, Kind, Table


def named(table: Table, row: Row) -> dict[str, Value]:
    """A row as it was read, by its fields' names."""
    return dict(zip(table.columns, row, strict=False))


def present(table: Table, fields: Mapping[str, Any]) -> ChangedObject:
    """The object of a row that is there. Never of a metadata pair, which has several."""
    match table.kind:
        case "messages":
            return MessageColumns(table).present(fields)
        case "channels":
            return Channel(**fields)
        case "tags":
            return Tag(**fields)
        case "metadata":  # pragma: no cover - pairs are never read as single rows
            raise AssertionError(table.kind)
        case _:
            assert_never(table.kind)


def absent(kind: Kind, fields: Mapping[str, Any]) -> ChangedObject:
    """An object whose row is gone, by what its deletion carries. Never a metadata pair."""
    match kind:
        case "messages":
            return MessageGone(
                id=fields["id"], conversation_id=fields["conversation_id"], channel_id=fields["channel_id"]
            )
        case "channels":
            return ChannelGone(id=fields["id"], source=fields["source"], source_channel_id=fields["source_channel_id"])
        case "tags":
            return TagGone(id=fields["id"])
        case "metadata":  # pragma: no cover - a pair without rows is still read as a pair
            raise AssertionError(kind)
        case _:
            assert_never(kind)


def entry(fields: Mapping[str, Any]) -> MetadataEntry:
    """One entry of a metadata pair."""
    return MetadataEntry(
        key=fields["key"], value=fields["value"], value_type=fields["value_type"], updated_at=fields["updated_at"]
    )


def pair(table: Table, key: Key) -> Key:
    """Subject and identifier under our names; a subject without identifier is cut at the last colon (Airy's form)."""
    raw = dict(zip(table.key_fields, key, strict=False))
    subject = raw.get("subject")
    cut = "identifier" not in raw and table.constants.get("identifier") is None
    if cut and isinstance(subject, str) and ":" in subject:
        raw["subject"], _, raw["identifier"] = subject.rpartition(":")
    fields = table.fields(raw)
    return fields["subject"], fields["identifier"]
