"""What the database says of an object: its row, its triggers, its last change, and whether anybody records.

Everything is read in one transaction, with the functions of the server itself.

The object that somebody asks about, by the names that a person uses.
"""

from typing import Final, Literal, Self

import sqlalchemy as sa
from attrs import define, evolve, field, frozen

from airy_trio import migrate
from airy_trio.capture import triggers
from airy_trio.capture.change_log import ChangeLog, newest_change
from airy_trio.capture.feed import ChangedObject, ChannelGone, MessageGone, Metadata, TagGone
from airy_trio.capture.inspection import inspect
from airy_trio.capture.lease import is_held
from airy_trio.capture.mapping import Key, Kind, Table
from airy_trio.capture.objects import DELETED, Change, Objects
from airy_trio.capture.queries import Queries
from airy_trio.database import POSTGRES, Names
from airy_trio.events.codec import EventTooLargeError, encode
from airy_trio.events.translate import translate
from airy_trio.settings import Settings

KINDS: Final[dict[str, Kind]] = {
    "message": "messages",
    "metadata": "metadata",
    "channel": "channels",
    "tag": "tags",
}
"""How a person calls each kind."""


@frozen(kw_only=True)
class Subject:
    """``id``: as on the wire; of metadata the identifier, with its ``subject``."""

    type: str
    id: str
    subject: str | None = None

    @classmethod
    def parse(cls, type_: str, id_: str) -> Self | None:
        """Read what was asked for; None where metadata lacks its ``SUBJECT:``."""
        if type_ != "metadata":
            return cls(type=type_, id=id_)
        subject, colon, identifier = id_.partition(":")
        return cls(type=type_, id=identifier, subject=subject) if colon and subject and identifier else None

    @property
    def kind(self) -> Kind:
        """The kind, as the settings name its table."""
        return KINDS[self.type]

    @property
    def object(self) -> str:
        """The identity that its events carry."""
        return f"{self.type}:{self.id}" if self.subject is None else f"metadata:{self.subject}:{self.id}"


_ONE_SNAPSHOT = sa.text("set transaction isolation level repeatable read")
_STATES = {
    "recorded": "recorded",
    "waiting": "not recorded yet",
    "unknown": "not known whether it is recorded",
}

RowState = Literal["unmapped", "absent", "excluded", "faulty", "fit"]


@define
class RowReport:
    """What the database knows of one object.

    ``row``: "excluded" by the mapping's ``where``, "faulty" if it cannot become an event. ``body``: the body of the
    event that the row would be now, None if there is no such event or no row to make it from. ``recordable``: these
    settings record the row as it is, or that it is gone. ``captured``: triggers of this mapping are in place, or none
    are needed. ``change``: the state of the newest entry in the change log, None if there is none. ``recording``: a
    server holds the lease; None if that is not known. ``lines``: the same in words.
    """

    row: RowState = "unmapped"
    body: bytes | None = None
    recordable: bool = True
    captured: bool = True
    change: Literal["recorded", "waiting", "unknown"] | None = None
    recording: bool | None = None
    lines: list[str] = field(factory=list)


def look(
    connection: sa.Connection, settings: Settings, subject: Subject, resume_point: str | None, *, store_known: bool
) -> RowReport:
    """Read everything in one transaction. Raises ``MappingError``, ``DatabaseError``.

    ``resume_point``: None if the store has none, as before the first start, or if the store is not known.
    """
    report = RowReport()
    names = Names(connection.dialect.name, settings.database.schema)
    if names.dialect == POSTGRES:
        connection.execute(_ONE_SNAPSHOT)
    tables = inspect(connection, settings.tables, watermarks=settings.changes.reads_only)
    table = tables.get(subject.kind)
    if table is None:
        report.lines = [
            f'row       none: database.tables.{subject.kind}.name is "", this application has no such table'
        ]
        return report
    key = _key(table, subject)
    report.row, report.body, words = _row(connection, settings, table, key)
    report.recordable = _is_recordable(report.row, table.kind, settings)
    report.lines.append(f"row       {words}")
    if settings.changes.reads_only:
        words = f'not known: changes.capture is "{settings.changes.capture}", which keeps no change log'
        report.lines.append(f"change    {words}")
        return report
    missing = list(migrate.pending(connection, "changes", settings.database))
    if missing:
        report.captured = False
        report.lines += (f"change    not known: {line}" for line in missing)
        return report
    newer = migrate.ahead(connection, "changes", settings.database) is not None
    deletes = settings.events.deletes
    faults = list(triggers.faults(connection, {subject.kind: table}, names, deletes=deletes, newer_schema=newer))
    report.captured = not faults
    report.lines += (f"triggers  {fault}" for fault in faults)
    change = newest_change(connection, names, subject.kind, key, resume_point)
    if change is None:
        report.lines.append(
            "change    none in the change log: recorded and trimmed, or from before the triggers were there"
        )
    else:
        report.change = ("recorded" if change.recorded else "waiting") if store_known else "unknown"
        what = "deleted" if change.operation == DELETED else "written"
        at = change.at.isoformat(timespec="milliseconds")
        report.lines.append(f"change    {what} {at} by the trigger's clock, {_STATES[report.change]}")
    report.recording = is_held(connection, names)
    report.lines.append(f"recorder  {_recorder(connection, names, held=report.recording)}")
    return report


def _key(table: Table, subject: Subject) -> Key:
    """The key as the application's table has it."""
    if subject.subject is None:
        return _theirs(table, "id", subject.id), None
    if "identifier" in table.key_fields:
        return _theirs(table, "subject", subject.subject), _theirs(table, "identifier", subject.id)
    return f"{subject.subject}:{subject.id}", None  # Airy's own form


def _theirs(table: Table, field: str, ours: str) -> str:
    values = table.values.get(field, {})
    return next((theirs for theirs, value in values.items() if str(value) == ours), ours)


def _row(connection: sa.Connection, settings: Settings, table: Table, key: Key) -> tuple[RowState, bytes | None, str]:
    """The state of the row, the body of the event that it would be now, and the state in words."""
    where = f'in table "{table.name}"'
    none = f"there is none {where}"
    excluded = f"there is one {where}, outside of database.tables.{table.kind}.where: it counts as deleted"
    if not Queries(connection.dialect.name, table).can_find(key):  # no value of the key's column is written like this
        return "absent", None, none
    found = _read(connection, settings, table, key)
    meaning = translate(found, settings.events)
    faults = [f"{fault.table} {fault.key}: {fault.reason}" for fault in meaning.faults]
    body = None
    for event in meaning.events:
        try:
            body, _ = encode(event, settings.listener.message_bytes_max)
        except EventTooLargeError as error:
            faults.append(str(error))
    if not found or _is_empty(found):
        # Metadata is read as a pair: an empty one either has no rows, or none that the mapping includes.
        if found and table.where and not _is_empty(_read(connection, settings, evolve(table, where=""), key)):
            return "excluded", body, excluded
        return "absent", body, none
    if faults:
        return "faulty", None, f"there is one {where}, which cannot become an event (row fault): {'; '.join(faults)}"
    if isinstance(found[0], MessageGone | ChannelGone | TagGone):
        return "excluded", body, excluded
    return "fit", body, f"there is one {where}, fit to be an event"


def _read(connection: sa.Connection, settings: Settings, table: Table, key: Key) -> tuple[ChangedObject, ...]:
    """The object as the server reads it: up to the same length."""
    objects = Objects(connection.dialect.name, {table.kind: table}, settings.listener.message_bytes_max)
    return objects.read(connection, [Change(table.kind, "U", key, (None, None))])


def _is_empty(found: tuple[ChangedObject, ...]) -> bool:
    return isinstance(found[0], Metadata) and not found[0].entries


def _is_recordable(row: RowState, kind: Kind, settings: Settings) -> bool:
    """Whether these settings record that an object is gone, if it is: always for channels and metadata."""
    recorded = settings.events.deletes or kind in ("channels", "metadata")
    if row == "absent":  # without triggers only a row that is still there is seen
        return recorded and not settings.changes.reads_only
    return recorded if row == "excluded" else True


def _recorder(connection: sa.Connection, names: Names, *, held: bool) -> str:
    consumer = ChangeLog(names).consumer(connection)
    if held:
        into = f" into {consumer.store}" if consumer is not None else ""
        return f"a server holds the lease and records{into}"
    return "no server holds the lease: nothing is recorded until one runs"
