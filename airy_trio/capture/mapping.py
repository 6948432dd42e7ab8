"""The mapping: which fields each kind of object has, and which tables and columns of the application hold them.

A *kind* (messages, metadata, channels, tags) has fixed *fields*. Each field is read from a column or is a constant.
``TablesOptions`` is the mapping as the settings declare it; ``Table`` is one mapped table as ``inspection`` found it in
the database; ``queries`` writes the SQL that reads it.

A database with our default tables needs no mapping. They are created once, on request, never over existing tables, and
belong to the application from then on.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final, Literal, get_args
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from attrs import field, frozen

from airy_trio.capture.feed import ContentForm, Kind, Value
from airy_trio.database import quote_identifier
from airy_trio.options import satisfying

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SINGULAR: Final[Mapping[Kind, str]] = {
    "messages": "message",
    "metadata": "metadata",
    "channels": "channel",
    "tags": "tag",
}
"""The name of one object of each kind: on the command line, and the beginning of its event types and identities."""
DELETABLE: Final = frozenset[Kind]({"messages", "tags"})
"""The kinds whose deletions are events of their own, sent only with ``[events] deletes``.

A deletion of the other kinds is always sent, as a state: a channel is not connected, metadata is empty.
"""

WATERMARK: Final = "updated_at"
"""The field that holds the time of a row's last change, if changes are captured by it. Metadata always has it."""

ColumnType = Literal["json", "timestamptz", "timestamp", "float", "numeric", "integer", "uuid", "text", "other"]
Scalar = str | int | bool | float
Key = tuple[Value, Value]
"""The values of a table's ``key_fields`` as stored in the database. The second is None if there is one key field."""


@frozen(kw_only=True)
class Field:
    """A field of a kind.

    ``key`` fields identify the object. The change log carries the values of ``carried`` fields of a deleted row. A kind
    has one or two ``key`` fields and at most two ``carried`` ones, because the change log has two columns for each.
    ``optional`` fields need no column. ``time`` fields are read as epoch milliseconds. ``unbounded`` fields are written
    by people and programs, to any length, and are read only up to a limit.
    """

    name: str
    key: bool = False
    carried: bool = False
    optional: bool = False
    time: bool = False
    unbounded: bool = False


FIELDS: Final[Mapping[Kind, tuple[Field, ...]]] = {
    "messages": (
        Field(name="id", key=True),
        Field(name="conversation_id", carried=True),
        Field(name="channel_id", carried=True),
        Field(name="content", unbounded=True),
        Field(name="delivery_state"),
        Field(name="from_contact"),
        Field(name="sent_at", time=True),
        Field(name="source"),
        Field(name="sender_id"),
    ),
    "metadata": (
        Field(name="subject", key=True),
        Field(name="identifier", key=True, optional=True),
        Field(name="key"),
        Field(name="value", unbounded=True),
        Field(name="value_type", optional=True),
        Field(name="updated_at", optional=True, time=True),
    ),
    "channels": (
        Field(name="id", key=True),
        Field(name="source", carried=True),
        Field(name="source_channel_id", carried=True),
        Field(name="connected"),
    ),
    "tags": (
        Field(name="id", key=True),
        Field(name="name"),
        Field(name="color"),
    ),
}


def _is_table_name(name: str | list[str] | None) -> bool:
    """Accept None and "", which have a meaning, and otherwise a name whose parts are not empty."""
    if name is None or name == "":
        return True
    parts = name.split(".", 1) if isinstance(name, str) else name
    is_complete = isinstance(name, str) or len(parts) == 2  # noqa: PLR2004 - schema and table
    return is_complete and all(re.fullmatch(r"[^\x00-\x1f\x7f]+", part) for part in parts)


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not the name of a zone; a directory of zones
        return False
    return True


@frozen(kw_only=True)
class TableOptions:
    """The mapping of one kind (settings, ``[database.tables.KIND]``).

    ``name``: None is the kind's own name, "" means that the application has no such table. ``columns`` maps our fields
    to the application's columns. ``values`` maps, for a field, the application's values to ours.
    """

    name: str | list[str] | None = field(
        default=None, validator=satisfying(_is_table_name, '"table", "schema.table", ["schema", "table"] or ""')
    )
    columns: Mapping[str, str] = field(factory=dict)
    constants: Mapping[str, Scalar] = field(factory=dict)
    values: Mapping[str, Mapping[str, Scalar]] = field(factory=dict)
    where: str = ""
    time_zone: str = field(
        default="UTC", validator=satisfying(_is_zone, "a name of the time zone database, such as Europe/Berlin")
    )

    def location(self, kind: Kind) -> tuple[str | None, str]:
        """Return schema and table of a mapped kind: a text is split at the first dot, a pair is used as is."""
        if self.name is None:
            return None, kind
        if isinstance(self.name, str):
            schema, dot, table = self.name.partition(".")
            return (schema, table) if dot else (None, schema)
        schema, table = self.name
        return schema, table


@frozen(kw_only=True)
class MessagesOptions(TableOptions):
    """The mapping of messages. ``content``: how the content becomes JSON (``feed.ContentForm``).

    With "auto" the author of a text decides the type of ``content``: text that happens to be a JSON object arrives as
    an object. "text" prevents that for a text column; with "json", content that is not JSON is a row fault.
    """

    content: ContentForm = "auto"


@frozen(kw_only=True)
class TablesOptions:
    """The mapping of all kinds (settings, ``[database.tables]``)."""

    messages: MessagesOptions = field(factory=MessagesOptions)
    metadata: TableOptions = field(factory=TableOptions)
    channels: TableOptions = field(factory=TableOptions)
    tags: TableOptions = field(factory=TableOptions)

    def of(self, kind: Kind) -> TableOptions:
        """Return the mapping of one kind."""
        options: TableOptions = getattr(self, kind)
        return options

    @property
    def mapped(self) -> Mapping[Kind, TableOptions]:
        """The kinds that the application has a table for, and their mappings, in the order of the documentation."""
        return {kind: self.of(kind) for kind in KINDS if self.of(kind).name != ""}


UniqueIndex = tuple[tuple[str, str], ...]
"""The columns of a unique index, each with its collation."""


@frozen(kw_only=True)
class Column:
    """A column of the application that holds one of our fields.

    On Postgres, ``sql_type`` is the type as written in a cast, without domain, length and precision, so that a cast to
    it changes no value, and ``oid`` is the number of the declared type, which may be a domain. ``virtual``: its
    value is computed when it is read, so the rows that a trigger receives lack it.
    """

    name: str
    type: ColumnType
    sql_type: str = ""
    oid: int = 0
    virtual: bool = False


@frozen(kw_only=True)
class Table:
    """A table of the application as found in the database, with its mapping.

    - ``columns`` has the fields that are read from the table; ``constants`` has the others (None for an optional field
      without a column).
    - ``row_triggers``: the table is partitioned or a partition, so statement triggers would miss rows.
    - ``unique`` (SQLite): for each unique index by which a row may replace another object's row, its columns with their
      collations.
    - ``watermark``: the column with the time of a row's last change, if changes are captured by it.
    - ``by_conversation``: an index begins with the column of ``conversation_id``.
    - ``definition`` (SQLite): the statement that creates the table; if it differs later, the table was altered.
    - ``oid`` (Postgres): its number in the catalogue, which stays the same if the table is renamed.
    """

    kind: Kind
    schema: str | None
    name: str
    columns: Mapping[str, Column]
    constants: Mapping[str, Value]
    values: Mapping[str, Mapping[str, Scalar]]
    where: str
    time_zone: str
    content_form: ContentForm = "auto"
    row_triggers: bool = False
    unique: tuple[UniqueIndex, ...] = ()
    watermark: Column | None = None
    by_conversation: bool = False
    definition: str = ""
    oid: int = 0
    zone: ZoneInfo = field(init=False)
    key_fields: tuple[str, ...] = field(init=False)
    """The fields that identify an object and have a column: one or two."""
    keys: tuple[Column, ...] = field(init=False)
    """The columns of ``key_fields``."""

    @zone.default
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    @key_fields.default
    def _key_fields(self) -> tuple[str, ...]:
        return tuple(f.name for f in FIELDS[self.kind] if f.key and f.name in self.columns)

    @keys.default
    def _keys(self) -> tuple[Column, ...]:
        return tuple(self.columns[name] for name in self.key_fields)

    def logged_columns(self, operation: str) -> tuple[Column | None, ...]:
        """Return the columns of ``key_1``, ``key_2``, ``old_1`` and ``old_2`` of the change log; None for an empty one.

        Only a deletion carries fields, because its event cannot get them from anywhere else.
        """
        carried = (self.columns.get(f.name) for f in FIELDS[self.kind] if f.carried and operation == "D")
        return (*(*self.keys, None)[:2], *(*carried, None, None)[:2])

    @property
    def quoted(self) -> str:
        """The table's name for SQL text."""
        return quoted_name(self.schema, self.name)

    def value(self, name: str, raw: Value) -> Value:
        """Return a raw value of a field with the mapping's ``values`` applied."""
        translations = self.values.get(name)
        if translations is None or raw is None:
            return raw
        return translations.get(_as_written(raw), raw)


Tables = Mapping[Kind, Table]
"""The mapped tables. Kinds that the application does not have are missing."""


def quoted_name(schema: str | None, name: str) -> str:
    """Return a table's name for SQL text, with its schema if one is given."""
    return quote_identifier(name) if schema is None else f"{quote_identifier(schema)}.{quote_identifier(name)}"


def _as_written(raw: Value) -> str:
    """Return a value as ``values`` spells it in its keys; booleans are spelled as Postgres spells them."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, bytes):
        return raw.decode(errors="replace")
    return str(raw)


_METADATA = sa.MetaData()
_TIME = sa.TIMESTAMP(timezone=True).with_variant(sa.Text(), "sqlite")

MESSAGES = sa.Table(
    "messages",
    _METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("conversation_id", sa.Text, nullable=False),
    sa.Column("channel_id", sa.Text, nullable=False),
    sa.Column("content", sa.Text),
    sa.Column("delivery_state", sa.Text, nullable=False),
    sa.Column("from_contact", sa.Boolean, nullable=False),
    sa.Column("sent_at", _TIME, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("sender_id", sa.Text),
    sa.Index("messages_conversation", "conversation_id", "sent_at"),  # to find the newest message of a conversation
)
METADATA = sa.Table(
    "metadata",
    _METADATA,
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("identifier", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text),
    sa.Column("value_type", sa.Text, nullable=False, server_default="text"),
    sa.Column("updated_at", _TIME),
)
CHANNELS = sa.Table(
    "channels",
    _METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("source_channel_id", sa.Text, nullable=False),
    sa.Column("connected", sa.Boolean, nullable=False),
)
TAGS = sa.Table(
    "tags",
    _METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("color", sa.Text, nullable=False),
)


def create_default_tables(connection: sa.Connection, kinds: Collection[Kind]) -> list[str]:
    """Create the default tables of these kinds, which must not exist, and return their names."""
    tables = [table for table in _METADATA.sorted_tables if table.name in kinds]
    _METADATA.create_all(connection, tables, checkfirst=False)
    return [table.name for table in tables]
