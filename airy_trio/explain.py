"""``airy-trio explain TYPE ID``: report what happened to one object, from its row to the clients.

It reads the database, in one transaction and with the functions that the server uses; the event store; and the admin
port of each process of the running server. If the store or the server does not answer, that is reported, and the
explanation continues without it. The first line is a verdict that combines all three: whether the current state of the
object was recorded, or what prevents it.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final, Literal, Self
from urllib.parse import urlencode

import sqlalchemy as sa
import trio
from attrs import define, evolve, field, frozen

from airy_trio import health
from airy_trio.app.build import TableChecks, opened_store, wait_until_available
from airy_trio.capture.change_log import ChangeLog, PostgresPoint, SqlitePoint
from airy_trio.capture.feed import ChangedObject, Gone, Kind, Metadata, ResumePointLost
from airy_trio.capture.inspection import inspect
from airy_trio.capture.lease import is_held
from airy_trio.capture.mapping import DELETABLE, SINGULAR, Key, Table
from airy_trio.capture.objects import DELETED, MARKS, Change, Objects
from airy_trio.check import servers
from airy_trio.database import POSTGRES, Names
from airy_trio.errors import AiryTrioError
from airy_trio.events.destinations import OfType
from airy_trio.events.models import ChannelUpdated
from airy_trio.events.translate import EventTooLargeError, encode, translate
from airy_trio.log.current import TYPE_OF, CurrentState
from airy_trio.log.store import Bounds, EventStore, Position, PositionExpired, StoredEvent
from airy_trio.settings import Settings

READ_EVENTS_MAX: Final = 1000
"""How many events are read from the store at once."""
TIMEOUT_S: Final = 5.0
VERDICTS: Final = ("clients", "passed", "waiting", "filtered", "no_subscription", "not_granted")
_IS_READ = sa.text(
    "select pg_visible_in_snapshot(change.txid, cast(:snapshot as pg_snapshot)) or coalesce("
    "pg_visible_in_snapshot(change.txid, cast(nullif(:target, '') as pg_snapshot)) "
    "and (change.txid, change.at) <= (cast(:page_txid as xid8), to_timestamp(:page_at)), false) "
    "from (select cast(:txid as xid8), cast(:at as timestamptz)) as change(txid, at)"
)
"""Whether a ``PostgresPoint`` includes a row of the change log: by its snapshot, or by the pages read so far."""
_ONE_SNAPSHOT = sa.text("set transaction isolation level repeatable read")
_STATES = {
    "recorded": "recorded",
    "waiting": "not recorded yet",
    "unknown": "not known whether it is recorded",
}

RowState = Literal["unmapped", "absent", "excluded", "faulty", "fit"]


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


@frozen
class _Found:
    """The newest event of the object, how many of its events are retained, and the state of the store.

    ``resume_point``: None before the first start. ``kept``: the offset of the object's event in the current state.
    """

    newest: StoredEvent | None
    count: int
    bounds: Bounds
    resume_point: str | None
    state: CurrentState
    kept: int | None


def explain(settings: Settings, subject: Subject) -> tuple[bool, list[str]]:
    """Return whether the log has or had the object's current state, and lines for the operator, the verdict first.

    Raises ``AiryTrioError`` if the database cannot be read.
    """
    options = settings.database
    with servers.opened(options.session_url, options.connect_timeout_s, pooled=False) as database:
        found, fault = _ask_store(settings, subject)
        report = database.run_sync(lambda connection: _read_database(connection, settings, subject, found))
    lines = report.lines
    if found is None:
        lines.append(f"event     not known: {fault}")
    else:
        lines += [*_event_lines(found), *_state_lines(found, settings, subject)]
        if found.newest is not None:
            lines += _client_lines(settings, Position(found.bounds.epoch, found.newest.offset), found.newest)
    if settings.admin.port:  # each condition that is not met, and each process that does not answer
        lines += (f"server    {fault}" for fault in health.faults(settings, ready=True))
    recorded, verdict = _verdict(report, found, subject)
    return recorded, [f"verdict   {verdict}", *lines]


def _verdict(report: RowReport, found: _Found | None, subject: Subject) -> tuple[bool, str]:
    """Return whether the object's current state was recorded, and one sentence for it, with the reason if not."""
    newest = None if found is None else found.newest
    is_current = newest is not None and _is_current(newest, report)
    # Without an event or a change, an absent row may never have existed; then unrecorded deletes are not the reason.
    is_unknown = report.row == "absent" and newest is None and report.change is None
    is_ignored = not (report.recordable or is_current or is_unknown)
    state = "excluded by `where`" if report.row == "excluded" else "absent"
    type_ = None if newest is None else newest.type
    verdicts = (  # the first that applies; those that prevent an event even if a server records come first
        (report.row == "unmapped", False, f"no events: no table is mapped for {subject.kind}"),
        (report.row == "faulty", False, "no event: the row cannot be converted"),
        (not report.captured, False,
         "no event: changes of this table are not captured; run: airy-trio migrate --config FILE"),
        (is_ignored, False, f"no event: the row is {state}, and deletes are not recorded"),
        (found is None, False, "not known: the event log cannot be read"),
        (report.change == "waiting" and report.recording, False, "not yet: the change is waiting to be recorded"),
        (report.change == "waiting", False, "not yet: the change is waiting for a server; no server is recording"),
        (is_current, True, f"recorded: {type_} is in the event log"),
        (newest is not None, False, f"not recorded: {type_} is in the event log, but is not the current state"),
        (report.change == "recorded", True, "recorded: its event is no longer retained in the event log"),
        (report.row == "absent", False, "this object is unknown: no row, no change, no event"),
        (report.row == "excluded", False, "no event is retained: the row is excluded by `where`"),
        (True, False, "no event is retained: no change of the row was captured within the retention of events"),
    )  # fmt: skip
    return next((recorded, words) for applies, recorded, words in verdicts if applies)


def _is_current(newest: StoredEvent, report: RowReport) -> bool:
    """Return whether the event has the object's current state: that of the row or, without a row, a deletion."""
    if report.body is not None:
        return newest.body == report.body
    if newest.type == ChannelUpdated.type:
        return json.loads(newest.body)["payload"]["connected"] is False
    return newest.type.endswith(".deleted")


def _read_database(connection: sa.Connection, settings: Settings, subject: Subject, found: _Found | None) -> RowReport:
    """Read everything in the transaction of the connection. Raises ``MappingError``, ``DatabaseError``."""
    report = RowReport()
    names = Names(connection.dialect.name, settings.database.schema)
    if names.dialect == POSTGRES:
        connection.execute(_ONE_SNAPSHOT)
    tables = inspect(connection, settings.tables, watermarks=settings.changes.reads_only)
    table = tables.get(subject.kind)
    if table is None:
        report.lines = [f'row       none: database.tables.{subject.kind}.name is "", so no table is mapped']
        return report
    constant = settings.tables.of(subject.kind).constants.get("subject", subject.subject)
    if constant != subject.subject:
        report.row = "absent"
        report.lines = [f'row       none: database.tables.{subject.kind}.constants.subject is "{constant}"']
        return report
    key = _key(table, subject)
    report.row, report.body, words = _row(connection, settings, table, key)
    if report.row in ("absent", "excluded"):  # a deletion is recorded only with ``deletes``, or if it is a state
        report.recordable = settings.events.deletes or table.kind not in DELETABLE
    if report.row == "absent" and settings.changes.reads_only:  # without triggers a deletion is not detected
        report.recordable = False
    report.lines.append(f"row       {words}")
    if settings.changes.reads_only:
        words = f'not known: changes.capture is "{settings.changes.capture}", which keeps no change log'
        report.lines.append(f"change    {words}")
        return report
    schema, faults = TableChecks(settings).installed(connection, {subject.kind: table})
    report.captured = not faults
    if schema.faults:
        report.lines += (f"change    not known: {line}" for line in schema.faults)
        return report
    report.lines += (f"triggers  {fault}" for fault in faults)
    resume_point = None if found is None else found.resume_point
    change = newest_change(connection, names, subject.kind, key, resume_point)
    if change is None:
        report.lines.append("change    none in the change log: recorded and trimmed, or older than the triggers")
    else:
        report.change = "unknown" if found is None else "recorded" if change.recorded else "waiting"
        operation = "deleted" if change.operation == DELETED else "written"
        at = change.at.isoformat(timespec="milliseconds")
        report.lines.append(f"change    {operation} {at} by the trigger's clock, {_STATES[report.change]}")
    report.recording = is_held(connection, names)
    words = "no server holds the lease: nothing is recorded until one runs"
    if report.recording:
        consumer = ChangeLog(names).consumer(connection)
        words = "a server holds the lease and records" + (f" into {consumer.store}" if consumer is not None else "")
    report.lines.append(f"recorder  {words}")
    return report


@frozen(kw_only=True)
class NewestChange:
    """The newest change of an object. ``at``: the trigger's clock. ``recorded``: the resume point includes it."""

    operation: str
    at: datetime
    recorded: bool


def newest_change(
    connection: sa.Connection, names: Names, kind: Kind, key: Key, resume_point: str | None
) -> NewestChange | None:
    """Return the newest change of one object that the change log still has, or None. For diagnosis by an operator.

    There is no index on keys, so this reads the whole change log, which retention keeps short.
    """
    log = ChangeLog(names)
    rows = log.rows
    matches = [
        sa.cast(column, sa.Text) == str(value)
        for column, value in zip((rows.c.key_1, rows.c.key_2), key, strict=True)
        if value is not None
    ]
    changes = sa.select(rows).where(rows.c.kind == kind, rows.c.operation.not_in(MARKS), *matches)
    # On Postgres a transaction with a lower number may write, and commit, after one with a higher number.
    order = (rows.c.at, *log.order) if names.dialect == POSTGRES else log.order
    row = connection.execute(changes.order_by(*(column.desc() for column in order)).limit(1)).first()
    if row is None:
        return None
    at = row.at.astimezone(UTC) if isinstance(row.at, datetime) else datetime.fromtimestamp(row.at / 1000, UTC)
    return NewestChange(operation=row.operation, at=at, recorded=_is_read(connection, names, row, resume_point))


def _is_read(connection: sa.Connection, names: Names, row: sa.Row[Any], resume_point: str | None) -> bool:
    """Return whether a resume point includes a row of the change log."""
    try:
        if resume_point is None:
            return False
        if names.dialect != POSTGRES:
            return bool(row.seq <= SqlitePoint.parse(resume_point).seq)
        point = PostgresPoint.parse(resume_point)
    except ResumePointLost:
        return False
    parameters = {"txid": str(row.txid), "at": row.at, "page_txid": point.txid, "page_at": point.at}
    parameters |= {"snapshot": point.snapshot, "target": point.target}
    return bool(connection.execute(_IS_READ, parameters).scalar_one())


def _key(table: Table, subject: Subject) -> Key:
    """Return the key as the application's table has it."""
    if subject.subject is None:
        return _theirs(table, "id", subject.id), None
    if "identifier" in table.key_fields:
        identifier = _theirs(table, "identifier", subject.id)
        if "subject" not in table.key_fields:  # it is a constant
            return identifier, None
        return _theirs(table, "subject", subject.subject), identifier
    return f"{subject.subject}:{subject.id}", None  # both in one column, as in Airy


def _theirs(table: Table, field: str, ours: str) -> str:
    values = table.values.get(field, {})
    return next((theirs for theirs, value in values.items() if str(value) == ours), ours)


def _row(connection: sa.Connection, settings: Settings, table: Table, key: Key) -> tuple[RowState, bytes | None, str]:
    """Return the state of the row, the body of the event that it would become now, and the state in words."""
    where = f'in table "{table.name}"'
    excluded = f"there is one {where}, excluded by database.tables.{table.kind}.where: it counts as deleted"
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
        return "absent", body, f"there is none {where}"
    if faults:
        return "faulty", None, f"there is one {where}, which cannot be converted (row fault): {'; '.join(faults)}"
    if isinstance(found[0], Gone):
        return "excluded", body, excluded
    return "fit", body, f"there is one {where}, which can become an event"


def _objects(connection: sa.Connection, settings: Settings, table: Table, key: Key) -> tuple[ChangedObject, ...]:
    """Read the object as the server does: values up to the same length. Empty if no row can have this key."""
    objects = Objects(connection.dialect.name, {table.kind: table}, settings.listener.message_bytes_max)
    query = objects.queries[table.kind].rows([key])
    if query is None:  # not a value of the type of the key's column
        return ()
    # The key as its row has it: an SQLite file may have numbers.
    stored = (one for one, _, _ in objects.rows[table.kind].convert(query.answer(connection).rows))
    key = next((one for one in stored if [*map(str, one)] == [*map(str, key)]), key)
    return objects.read(connection, [Change(table.kind, "U", key, (None, None))])


def _is_empty(found: tuple[ChangedObject, ...]) -> bool:
    return isinstance(found[0], Metadata) and not found[0].entries


def _ask_store(settings: Settings, subject: Subject) -> tuple[_Found | None, str]:
    """Search the store; return what it has, or None and why it cannot be read."""
    if settings.log.store == "memory":
        return None, 'the event store "memory" is inside the server process'

    async def ask() -> _Found:
        async with opened_store(settings, create=False) as store:
            return await wait_until_available(lambda: _search(store, subject), settings.database, "log.url")

    try:
        return trio.run(ask), ""
    except AiryTrioError as fault:
        return None, str(fault)


async def _search(store: EventStore, subject: Subject) -> _Found:
    while True:
        # First the resume point, then the events: so the events include all changes before the resume point.
        resume_point = await store.resume_point()
        bounds = await store.bounds()
        at, newest, count = bounds.floor, None, 0
        try:
            while events := await store.read(at, READ_EVENTS_MAX):
                for event in events:
                    if event.object == subject.object:
                        newest, count = event, count + 1
                at = at.at(events[-1].offset)
            state = CurrentState.of(bounds, bounds.head)
            kept = await _kept(store, state, subject)
        except PositionExpired:  # trimmed in the meantime, or another state has begun
            continue
        return _Found(newest, count, bounds, resume_point, state, kept)


async def _kept(store: EventStore, state: CurrentState, subject: Subject) -> int | None:
    """Return the offset of the object's event in the current state; None if it has none."""
    if state.at is None:
        return None
    at, of_type = state.until.at(0), OfType(TYPE_OF[subject.kind])
    while events := await store.current(state.at, at, READ_EVENTS_MAX, of_type):
        for event in events:
            if event.object == subject.object:
                return event.offset
        at = at.at(events[-1].offset)
    return None


def _event_lines(found: _Found) -> Iterator[str]:
    first, last, epoch = found.bounds.first, found.bounds.last, found.bounds.epoch
    if found.newest is None:
        retained = f"{first} to {last} of epoch {epoch}" if last >= first else "nothing"
        yield f"event     none is retained (the log has {retained}): not recorded, or trimmed since"
        return
    at = datetime.fromtimestamp(found.newest.appended_at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    more = f", the newest of {found.count} that are retained" if found.count > 1 else ""
    truncated = ", too large, so without its content" if found.newest.truncated else ""
    yield f"event     {found.newest.type} at {epoch}-{found.newest.offset}, recorded {at}{more}{truncated}"


def _state_lines(found: _Found, settings: Settings, subject: Subject) -> Iterator[str]:
    type_, epoch, newest = TYPE_OF[subject.kind], found.bounds.epoch, found.newest
    if type_ in settings.log.keep_current and newest is not None and newest.offset > found.state.until.offset:
        yield f"state     not known: a server still has to add the event at {epoch}-{newest.offset}"
    elif found.kept is not None:
        yield f"state     replay:current has it, with the event at {epoch}-{found.kept}"
    elif type_ not in settings.log.keep_current:
        yield f"state     replay:current has it in the recent window only: {type_} is not in log.keep_current"
    elif type_ in found.state.whole:
        yield "state     replay:current does not have it, as there was no such row when it was recorded"
    else:
        remedy = "run airy-trio backfill"
        if settings.changes.reads_only:
            remedy = f'with changes.capture "{settings.changes.capture}" there is no backfill'
        yield f"state     replay:current does not have it, and not all of {type_}: {remedy}"


def _client_lines(settings: Settings, position: Position, event: StoredEvent) -> Iterator[str]:
    """Yield how many connected clients are past the event: it was sent to them, or they subscribed later.

    The others will receive it, or never will, for the reasons that are counted.
    """
    if not settings.admin.port:
        yield "clients   not known: [admin] port is 0, so the server has no admin port"
        return
    query = {"position": str(position), "type": event.type}
    optional = {"channel": event.channel_id, "conversation": event.conversation_id}
    query |= {name: value for name, value in optional.items() if value is not None}
    path = f"/api/clients?{urlencode(query)}"
    found = [answer for _, answer in health.answers(settings, path, VERDICTS, settings.listener.workers, TIMEOUT_S)]
    answers = [answer for answer in found if not isinstance(answer, str)]
    if not answers:
        yield "clients   not known"
        return
    counts = {verdict: sum(answer[verdict] for answer in answers) for verdict in VERDICTS}
    where = "" if len(answers) == len(found) else f" to the {len(answers)} of {len(found)} workers that answer"
    yield (
        f"clients   {counts['clients']} connected{where}: "
        f"{counts['passed']} are past it, {counts['waiting']} are not yet, "
        f"{counts['filtered']} subscribe to other destinations, {counts['no_subscription']} to none, "
        f"{counts['not_granted']} may not read it"
    )
    for session in chain.from_iterable(answer["sessions"] for answer in answers):
        user = "" if session["user"] is None else f" of {session['user']}"
        yield f"          session {session['session']}{user}: {session['verdict'].replace('_', ' ')}"
