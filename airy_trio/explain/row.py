"""Read one object from the database: its row, its triggers, its last change, and whether a server records.

Everything is read in one transaction, with the functions that the server uses.
"""

from typing import Literal, Self

import sqlalchemy as sa
from attrs import define, evolve, field, frozen

from airy_trio import migrate
from airy_trio.capture import triggers
from airy_trio.capture.change_log import ChangeLog, newest_change
from airy_trio.capture.feed import ChangedObject, Gone, Metadata
from airy_trio.capture.inspection import inspect
from airy_trio.capture.lease import is_held
from airy_trio.capture.mapping import DELETABLE, SINGULAR, Key, Kind, Table
from airy_trio.capture.objects import DELETED, Change, Objects
from airy_trio.capture.queries import Queries
from airy_trio.database import POSTGRES, Names
from airy_trio.events.codec import EventTooLargeError, encode
from airy_trio.events.translate import translate
from airy_trio.settings import Settings


@frozen(kw_only=True)
class Subject:
    """An object, as named on the command line. ``id`` is as in events; metadata has its identifier there."""

    type: str
    id: str
    subject: str | None = None

    @classmethod
    def parse(cls, type_: str, id_: str) -> Self | None:
        """Return the subject, or None if the id of metadata lacks its ``SUBJECT:``."""
        if type_ != "metadata":
            return cls(type=type_, id=id_)
        subject, colon, identifier = id_.partition(":")
        return cls(type=type_, id=identifier, subject=subject) if colon and subject and identifier else None

    @property
    def kind(self) -> Kind:
        """The kind, as the settings call its table."""
        return next(kind for kind, name in SINGULAR.items() if name == self.type)

    @property
    def object(self) -> str:
        """The object of its events, as the event store has it."""
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
    """What the database has of one object.

    ``row``: "excluded" by the mapping's ``where``, "faulty" if it cannot be converted. ``body``: of the event that the
    row would become now, or None. ``recordable``: with these settings the current state is recorded, also if it is a
    deletion. ``captured``: the triggers of this mapping are installed, or none are needed. ``change``: the state of the
    newest entry in the change log, or None. ``recording``: a server holds the lease; None if not known. ``lines``: the
    same in words.
    """

    row: RowState = "unmapped"
    body: bytes | None = None
    recordable: bool = True
    captured: bool = True
    change: Literal["recorded", "waiting", "unknown"] | None = None
    recording: bool | None = None
    lines: list[str] = field(factory=list)


def read(
    connection: sa.Connection, settings: Settings, subject: Subject, resume_point: str | None, *, store_known: bool
) -> RowReport:
    """Read everything in the transaction of the connection. Raises ``MappingError``, ``DatabaseError``.

    ``resume_point``: of the event store; None before the first start, or if the store cannot be read
    (``store_known``).
    """
    report = RowReport()
    names = Names(connection.dialect.name, settings.database.schema)
    if names.dialect == POSTGRES:
        connection.execute(_ONE_SNAPSHOT)
    tables = inspect(connection, settings.tables, watermarks=settings.changes.reads_only)
    table = tables.get(subject.kind)
    if table is None:
        report.lines = [f'row       none: database.tables.{subject.kind}.name is "", so no table is mapped']
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
        report.lines.append("change    none in the change log: recorded and trimmed, or older than the triggers")
    else:
        report.change = ("recorded" if change.recorded else "waiting") if store_known else "unknown"
        operation = "deleted" if change.operation == DELETED else "written"
        at = change.at.isoformat(timespec="milliseconds")
        report.lines.append(f"change    {operation} {at} by the trigger's clock, {_STATES[report.change]}")
    report.recording = is_held(connection, names)
    report.lines.append(f"recorder  {_recorder(connection, names, held=report.recording)}")
    return report


def _key(table: Table, subject: Subject) -> Key:
    """Return the key as the application's table has it."""
    if subject.subject is None:
        return _theirs(table, "id", subject.id), None
    if "identifier" in table.key_fields:
        return _theirs(table, "subject", subject.subject), _theirs(table, "identifier", subject.id)
    return f"{subject.subject}:{subject.id}", None  # both in one column, as in Airy


def _theirs(table: Table, field: str, ours: str) -> str:
    values = table.values.get(field, {})
    return next((theirs for theirs, value in values.items() if str(value) == ours), ours)


def _row(connection: sa.Connection, settings: Settings, table: Table, key: Key) -> tuple[RowState, bytes | None, str]:
    """Return the state of the row, the body of the event that it would become now, and the state in words."""
    where = f'in table "{table.name}"'
    none = f"there is none {where}"
    excluded = f"there is one {where}, excluded by database.tables.{table.kind}.where: it counts as deleted"
    if not Queries(connection.dialect.name, table).can_find(key):  # not a value of the type of the key's column
        return "absent", None, none
    found = _objects(connection, settings, table, key)
    meaning = translate(found, settings.events)
    faults = [f"{fault.table} {fault.key}: {fault.reason}" for fault in meaning.faults]
    body = None
    for event in meaning.events:
        try:
            body, _ = encode(event, settings.listener.message_bytes_max)
        except EventTooLargeError as error:
            faults.append(str(error))
    if not found or _is_empty(found):
        # Empty metadata has either no rows, or only rows that the mapping excludes: read again without `where`.
        if found and table.where and not _is_empty(_objects(connection, settings, evolve(table, where=""), key)):
            return "excluded", body, excluded
        return "absent", body, none
    if faults:
        return "faulty", None, f"there is one {where}, which cannot be converted (row fault): {'; '.join(faults)}"
    if isinstance(found[0], Gone):
        return "excluded", body, excluded
    return "fit", body, f"there is one {where}, which can become an event"


def _objects(connection: sa.Connection, settings: Settings, table: Table, key: Key) -> tuple[ChangedObject, ...]:
    """Read the object as the server does: values up to the same length."""
    objects = Objects(connection.dialect.name, {table.kind: table}, settings.listener.message_bytes_max)
    return objects.read(connection, [Change(table.kind, "U", key, (None, None))])


def _is_empty(found: tuple[ChangedObject, ...]) -> bool:
    return isinstance(found[0], Metadata) and not found[0].entries


def _is_recordable(row: RowState, kind: Kind, settings: Settings) -> bool:
    """Return whether the state is recorded: a deletion only with ``deletes``, unless its event is a state."""
    recorded = settings.events.deletes or kind not in DELETABLE
    if row == "absent":  # without triggers an absent row is not noticed
        return recorded and not settings.changes.reads_only
    return recorded if row == "excluded" else True


def _recorder(connection: sa.Connection, names: Names, *, held: bool) -> str:
    consumer = ChangeLog(names).consumer(connection)
    if held:
        into = f" into {consumer.store}" if consumer is not None else ""
        return f"a server holds the lease and records{into}"
    return "no server holds the lease: nothing is recorded until one runs"
