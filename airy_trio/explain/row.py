"""What the database says of an object: its row, its triggers, its last change, and whether anybody records.

Everything is read in one transaction, with the functions of the server itself.
"""

from typing import Literal

import sqlalchemy as sa
from attrs import define, field

from airy_trio import migrate
from airy_trio.changes import triggers
from airy_trio.changes.changelog import ChangeLog
from airy_trio.changes.history import newest_change
from airy_trio.changes.inspection import inspect
from airy_trio.changes.lease_holder import is_held
from airy_trio.changes.objects import DELETED, Change, Objects
from airy_trio.changes.queries import Queries
from airy_trio.changes.rows import ChannelGone, MessageGone, Metadata, TagGone
from airy_trio.changes.tables import Key, Table
from airy_trio.database import POSTGRES, Names
from airy_trio.events.codec import EventTooLargeError, encode
from airy_trio.events.translate import translate
from airy_trio.explain.subject import Subject
from airy_trio.settings import Settings

_ONE_SNAPSHOT = sa.text("set transaction isolation level repeatable read")


RowState = Literal["unmapped", "absent", "excluded", "faulty", "fit"]


@define
class RowReport:
    """What the database knows of one object.

    ``row``: "excluded" by the mapping's ``where``, "faulty" if it cannot become an event. ``captured``: triggers of
    this mapping are in place, or none are needed. ``change``: the state of the newest entry in the change log, None if
    there is none. ``recording``: a server holds the lease; None if that is not known. ``lines``: the same in words.
    """

    row: RowState = "unmapped"
    captured: bool = True
    change: Literal["recorded", "waiting"] | None = None
    recording: bool | None = None
    lines: list[str] = field(factory=list)


def look(connection: sa.Connection, settings: Settings, subject: Subject, resume_point: str | None) -> RowReport:
    """Read everything in one transaction. Raises ``MappingError``, ``DatabaseError``."""
    report = RowReport()
    names = Names(connection.dialect.name, settings.database.schema)
    if names.dialect == POSTGRES:
        connection.execute(_ONE_SNAPSHOT)
    tables = inspect(connection, settings.tables)
    table = tables.get(subject.kind)
    if table is None:
        report.lines = [
            f'row       none: database.tables.{subject.kind}.name is "", this application has no such table'
        ]
        return report
    key = _key(table, subject)
    report.row, words = _row(connection, settings, table, key)
    report.lines.append(f"row       {words}")
    if settings.changes.capture != "triggers":
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
        report.change = "recorded" if change.recorded else "waiting"
        what = "deleted" if change.operation == DELETED else "written"
        state = "recorded" if change.recorded else "not recorded yet"
        at = change.at.isoformat(timespec="milliseconds")
        report.lines.append(f"change    {what} {at} by the trigger's clock, {state}")
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


def _row(connection: sa.Connection, settings: Settings, table: Table, key: Key) -> tuple[RowState, str]:
    where = f'in table "{table.name}"'
    if not Queries(connection.dialect.name, table).can_find(key):  # no value of the key's column is written like this
        return "absent", f"there is none {where}"
    objects = Objects(connection.dialect.name, {table.kind: table})
    found = objects.read(connection, [Change(table.kind, "U", key, (None, None))])
    if not found or (isinstance(found[0], Metadata) and not found[0].entries):
        excluded = " (or its mapping's where leaves it out)" if table.where else ""
        return "absent", f"there is none {where}{excluded}"
    if isinstance(found[0], MessageGone | ChannelGone | TagGone):
        return "excluded", f"there is one {where}, outside of database.tables.{table.kind}.where: it counts as deleted"
    meaning = translate(found, settings.events)
    faults = [f"{fault.table} {fault.key}: {fault.reason}" for fault in meaning.faults]
    for event in meaning.events:
        try:
            encode(event, settings.listener.message_bytes_max)
        except EventTooLargeError as error:
            faults.append(str(error))
    if faults:
        return "faulty", f"there is one {where}, which cannot become an event (row fault): {'; '.join(faults)}"
    return "fit", f"there is one {where}, fit to be an event"


def _recorder(connection: sa.Connection, names: Names, *, held: bool) -> str:
    consumer = ChangeLog(names).consumer(connection)
    if held:
        into = f" into {consumer.store}" if consumer is not None else ""
        return f"a server holds the lease and records{into}"
    return "no server holds the lease: nothing is recorded until one runs"
