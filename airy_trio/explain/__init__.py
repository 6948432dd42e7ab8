"""``airy-trio explain TYPE ID``: what happened to one object, from its row to the clients, or what prevented it.

Three places are asked: the database (``row``), the event store (here), and the running server at its admin ports
(``clients``). A place that does not answer is reported, and the others are asked all the same. The first line is a
verdict over all of them.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import sqlalchemy as sa
import trio
from attrs import frozen

from airy_trio.app.build import open_database, opened_store, wait_until_available
from airy_trio.database import SQLITE, DatabaseError, sqlite_path
from airy_trio.errors import AiryTrioError, StartError, single_error
from airy_trio.events.models import ChannelUpdated, MessageDeleted, TagDeleted
from airy_trio.explain import clients, row
from airy_trio.explain.row import Subject
from airy_trio.log.position import Position
from airy_trio.log.store import EventStore, PositionExpired, StoredEvent
from airy_trio.migrate import require_file
from airy_trio.settings import Settings

__all__ = ["Subject", "explain"]

READ_EVENTS_MAX = 1000


@frozen
class _Found:
    """What the store knows: the newest event of the object, how many of it are kept, and the resume point."""

    newest: StoredEvent | None
    count: int
    bounds_words: str
    epoch: str
    resume_point: str | None


@frozen
class Explanation:
    """``lines`` for a person, the verdict first. ``recorded``: the log has, or had, the object's current state."""

    recorded: bool
    lines: list[str]


def explain(settings: Settings, subject: Subject) -> Explanation:
    """Ask all three places. Raises ``AiryTrioError`` if the database cannot be asked."""
    options = settings.database
    if sa.make_url(options.url).get_backend_name() == SQLITE:
        require_file(sqlite_path(options.url))
    found, trouble = _ask_store(settings, subject)
    point = None if found is None else found.resume_point
    database = open_database(options.direct_url or options.url, options)
    try:
        report = database.run_sync(
            lambda connection: row.look(connection, settings, subject, point, store_known=found is not None)
        )
    except DatabaseError as error:
        raise StartError([f"database.url: the database cannot be used: {error}"]) from None
    finally:
        database.engine.dispose()
    lines = report.lines
    lines += _event_lines(found) if found is not None else [f"event     not known: {trouble}"]
    servers = clients.Servers.of(settings)
    newest = None if found is None else found.newest
    if found is not None and newest is not None:
        lines += clients.lines(servers, Position(found.epoch, newest.offset), newest)
    lines += clients.readiness_lines(servers)
    recorded, verdict = _verdict(report, newest, subject, store_known=found is not None)
    return Explanation(recorded, [f"verdict   {verdict}", *lines])


def _verdict(  # noqa: PLR0911 - one return for each verdict, in the order of what prevents most
    report: row.RowReport, newest: StoredEvent | None, subject: Subject, *, store_known: bool
) -> tuple[bool, str]:
    """Whether the object's current state was recorded, and one sentence that says so or says what prevents it."""
    is_current = newest is not None and _is_current(newest, report)
    prevention = _prevention(report, newest, subject, is_current=is_current)
    if prevention is not None:
        return False, prevention
    if not store_known:
        return False, "not known: the event log cannot be asked"
    if report.change == "waiting":
        if report.recording:
            return False, "not yet: the change waits to be recorded"
        return False, "not yet: the change waits for a server; none records now"
    if newest is not None:
        if is_current:
            return True, f"recorded: {newest.type} is in the event log"
        return False, f"not recorded: {newest.type} is in the event log, but is not the current state"
    if report.change == "recorded":
        return True, "recorded: the event log does not keep its event any more"
    if report.row == "absent":
        return False, "nothing is known of this object: no row, no change, no event"
    if report.row == "excluded":
        return False, "no event is kept: the row is excluded by `where`"
    return False, "no event is kept: no change of the row was captured for as long as events are kept"


def _prevention(report: row.RowReport, newest: StoredEvent | None, subject: Subject, *, is_current: bool) -> str | None:
    """What makes an event of the current state impossible, whether or not a server records; None if nothing does."""
    if report.row == "unmapped":
        return f"no events: this application has no table for {subject.kind}"
    if report.row == "faulty":
        return "no event: the row cannot become one"
    if not report.captured:
        return "no event: changes of this table are not captured; run: airy-trio migrate --config FILE"
    # Without an event or a change an absent row may never have existed, so a missing deletion is not the reason.
    is_unknown = report.row == "absent" and newest is None and report.change is None
    if report.recordable or is_current or is_unknown:
        return None
    state = "excluded by `where`" if report.row == "excluded" else "absent"
    return f"no event: the row is {state}, and deletes are not recorded"


def _is_current(newest: StoredEvent, report: row.RowReport) -> bool:
    """Whether the event has the object's current state. If there is no row, the event must say so."""
    if report.body is not None:
        return newest.body == report.body
    if newest.type == ChannelUpdated.type:
        return json.loads(newest.body)["payload"]["connected"] is False
    return newest.type in (MessageDeleted.type, TagDeleted.type)


def _ask_store(settings: Settings, subject: Subject) -> tuple[_Found | None, str]:
    """What the store knows, or why it cannot be asked."""
    if settings.log.store == "memory":
        return None, 'the event store "memory" is inside the server'

    async def ask() -> _Found:
        async with opened_store(settings, create=False) as opened:
            return await wait_until_available(lambda: _search(opened.store, subject), settings.database, "log.url")

    try:
        return trio.run(ask), ""
    except AiryTrioError as error:
        return None, str(error)
    except BaseExceptionGroup as group:
        error_told = single_error(group)
        if not isinstance(error_told, AiryTrioError):
            raise
        return None, str(error_told)


async def _search(store: EventStore, subject: Subject) -> _Found:
    while True:
        # Read before the events, so that the events include those of all changes before the resume point.
        resume_point = await store.resume_point()
        bounds = await store.bounds()
        at, newest, count = bounds.floor, None, 0
        try:
            while events := await store.read(at, READ_EVENTS_MAX):
                for event in events:
                    if event.object == subject.object:
                        newest, count = event, count + 1
                at = at.at(events[-1].offset)
        except PositionExpired:  # trimmed meanwhile: once more
            continue
        kept = f"{bounds.first} to {bounds.last} of epoch {bounds.epoch}" if bounds.last >= bounds.first else "nothing"
        return _Found(newest, count, kept, bounds.epoch, resume_point)


def _event_lines(found: _Found) -> Iterator[str]:
    if found.newest is None:
        yield f"event     none of it is kept (kept is {found.bounds_words}): not recorded, or trimmed since"
        return
    at = datetime.fromtimestamp(found.newest.appended_at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    more = f", the newest of {found.count} that are kept" if found.count > 1 else ""
    cut = ", too large, so without its content" if found.newest.truncated else ""
    yield f"event     {found.newest.type} at {found.epoch}-{found.newest.offset}, recorded {at}{more}{cut}"
