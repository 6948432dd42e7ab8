"""Rows of the messages table as objects, by position: of these a bulk change has the most.

Knows the mapping of one table; refuses to know how its rows are asked for.
"""

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

from airy_trio.changes.driver import Row
from airy_trio.changes.rows import ChangedObject, ContentForm, Message, MessageGone, Value
from airy_trio.changes.tables import FIELDS, Key, Table

_FIELDS = tuple(field.name for field in FIELDS["messages"])


class MessageColumns:
    """Where each field of a message is found in a row as ``Queries.rows`` gives it, which ends with ``included``."""

    def __init__(self, table: Table, text_chars_max: int = 0) -> None:
        content = table.columns.get("content")
        self._text_chars_max = text_chars_max
        read = tuple(table.columns)
        constants = {name: table.constants.get(name) for name in _FIELDS if name not in table.columns}
        is_json = content is not None and content.type == "json"
        self._form: ContentForm = "json" if table.content_form == "auto" and is_json else table.content_form
        self._added = (*constants.values(), self._form, table.zone)
        names = (*read, "included", *constants, "content_form", "time_zone")
        self._message: itemgetter[Any] = itemgetter(*map(names.index, Message._fields))
        self._key, self._included = read.index("id"), len(read)
        self._translated = tuple(name for name in table.values if name in table.columns)
        self._table = table

    def objects(self, rows: Iterable[Row]) -> Mapping[Key, ChangedObject]:
        """The messages by key; what the mapping's ``where`` leaves out is gone."""
        key, included, added, chars_max = self._key, self._included, self._added, self._text_chars_max
        found: dict[Key, ChangedObject] = {}
        for row in rows:
            message = Message._make(self._message(row + added))
            if self._translated:
                message = self._with_values(message)
            if is_cut(message.content, chars_max):
                message = message._replace(content=whole_characters(message.content), content_form="text")
            found[row[key], None] = message if row[included] else _gone(message)
        return found

    def present(self, fields: Mapping[str, Any]) -> Message:
        """A message with these fields, which are under our names."""
        return Message(**fields, content_form=self._form, time_zone=self._table.zone)

    def _with_values(self, message: Message) -> Message:
        """The same with the mapping's ``values`` applied."""
        translated: dict[str, Any] = {
            name: self._table.value(name, getattr(message, name)) for name in self._translated
        }
        return message._replace(**translated)


def is_cut(value: Value, chars_max: int) -> bool:
    """Whether a text was longer than what is read of one."""
    return isinstance(value, (str, bytes)) and len(value) > chars_max


def whole_characters(value: Value) -> Value:
    """What is left of a text that may have been cut within a character."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _gone(message: Message) -> MessageGone:
    return MessageGone(id=message.id, conversation_id=message.conversation_id, channel_id=message.channel_id)
