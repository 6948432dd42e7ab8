"""Check the newest rows of each mapped table: read and convert them as the server does, and report failures.

The newest rows show what the application writes now. They are ordered by the time column of the kind, if it has one
and the query is fast enough, else by the key, because a primary key has an index and often grows. A table without such
an index is not worth a long scan, so the time of each attempt is limited.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Final, Literal

import psycopg
import sqlalchemy as sa
from attrs import define, field, frozen

from airy_trio.capture.feed import ChangedObject, Gone, Kind, Metadata, Unreadable, Value
from airy_trio.capture.mapping import WATERMARK, Key, Table, Tables
from airy_trio.capture.objects import Change, Objects
from airy_trio.capture.queries import Query
from airy_trio.capture.scans import SECOND_US, TableScan
from airy_trio.check.servers import Finding
from airy_trio.database import POSTGRES, DatabaseRefused, translated
from airy_trio.database.connections import DRIVER_ERRORS
from airy_trio.errors import listed
from airy_trio.events import values
from airy_trio.events.models import MessageUpdated
from airy_trio.events.translate import EventTooLargeError, encode, translate
from airy_trio.events.values import RowFault, UnfitValueError, printable
from airy_trio.settings import Settings
from airy_trio.terminal import shortened

ROWS_MAX: Final = 1000
"""How many rows of each table are read."""
BATCH_ROWS: Final = 100
"""How many rows are in memory at once: a row may have megabytes."""
ALL_MIN: Final = 10
"""If none of a table's newest rows can be converted, and there are at least this many, the mapping is wrong."""
TIMEOUT_S: Final = 5.0
"""For each statement on Postgres, and for each table on SQLite."""
YEAR_US: Final = 365 * 86_400 * SECOND_US
"""A time before this is probably a number of seconds, read as milliseconds."""
YEAR_END: Final = "1971"
"""The same limit, for times as ISO 8601 text."""
TIME_FORMS: Final = "numbers are milliseconds since 1970, and text is ISO 8601"
SHOWN_MAX: Final = 5
"""How many unlisted values of a field are shown, each with at most the following number of characters."""
SHOWN_CHARACTERS_MAX: Final = 40
_STEPS: Final = 10_000
"""How many instructions SQLite's virtual machine runs between two checks of the clock."""
_BAD_VALUE: Final = "22"
"""The class of SQLSTATEs whose messages quote the value."""

_CLOSED: Final[Mapping[str, Callable[[Value], object]]] = {
    "delivery_state": values.delivery_state,
    "from_contact": values.from_contact,
    "connected": values.connected,
    "subject": values.subject,
}
"""Fields with a closed set of values, and their converters. A row with any other value is not sent."""
_OPEN: Final = ("source", "color")
"""Fields with an open set of values. A value that the mapping does not list is sent unchanged."""


BODIES_MAX: Final = 10
"""The maximum number of ``NewestRows.bodies``."""


@frozen
class NewestRows:
    """What the newest rows of one table show.

    ``findings``: rows that cannot be converted, and values that the mapping does not list. ``bodies``: the bodies
    of the events that these rows would become, without rows that cannot be converted. ``all_fail``: there are at least
    ``ALL_MIN`` rows, and none can be converted.
    """

    kind: Kind
    findings: Sequence[Finding]
    bodies: Sequence[str] = ()
    all_fail: bool = False


@define
class _Seen:
    """Findings in the newest rows of one table, by reason and by field. ``objects``: metadata has several rows each.

    ``order``: the names of the columns by which these rows are the newest. ``sent_at``: the newest time of their
    messages, "" if there is none.
    """

    rows: int
    objects: int
    order: str = ""
    sent_at: str = ""
    bodies: list[str] = field(factory=list)
    faults: dict[str, list[RowFault]] = field(factory=lambda: defaultdict(list))
    unlisted: dict[str, dict[str, None]] = field(factory=lambda: defaultdict(dict))


def newest_rows(connection: sa.Connection, settings: Settings, tables: Tables) -> Iterator[NewestRows]:
    """Read and convert the newest rows of each table. Raises the driver's error if the database is unavailable."""
    objects = Objects(connection.dialect.name, tables, settings.listener.message_bytes_max)
    for kind, table in tables.items():
        setting = f"database.tables.{kind}"
        try:
            seen = _in_newest_order(connection, settings, objects, table)
        except DRIVER_ERRORS as error:
            refusal = translated(error)
            if not isinstance(refusal, DatabaseRefused):
                raise
            problem = f"{setting}: its newest rows cannot be read: {_without_values(refusal)}"
            yield NewestRows(kind, [("problem", problem)])
            continue
        if seen is None:
            reason = f"reading them takes longer than {TIMEOUT_S} s; an index on the key would help"
            yield NewestRows(kind, [("note", f"{setting}: its newest rows were not checked: {reason}")])
            continue
        all_fail = seen.rows >= ALL_MIN and sum(map(len, seen.faults.values())) >= seen.objects
        findings: list[Finding] = [("warning", line) for line in _warnings(table, seen)]
        if table.watermark is not None and seen.rows >= ALL_MIN:
            findings += _watermark_findings(connection, table, table.watermark.name)
        yield NewestRows(kind, findings, seen.bodies, all_fail)


def _watermark_findings(connection: sa.Connection, table: Table, name: str) -> Iterator[Finding]:
    """Report a column for ``updated_at`` that has another unit or format than expected. Raises the driver's error."""
    setting = f'database.tables.{table.kind}.columns.{WATERMARK}: "{name}"'
    with bounded(connection):
        newest_us, _ = TableScan(connection.dialect.name, table, 1).newest(connection, None)
        if newest_us is None:
            finding = "has no time in any row, so the server would send nothing of this table"
            yield "problem", f"{setting} {finding}; {TIME_FORMS}"
        elif newest_us < YEAR_US:
            finding = "has no time after 1970, so a row that has a future time hides others"
            yield "warning", f"{setting} {finding}; {TIME_FORMS}"


def _in_newest_order(connection: sa.Connection, settings: Settings, objects: Objects, table: Table) -> _Seen | None:
    """Read the newest rows in the best order that is fast enough; None if no order is. Raises the driver's error.

    Rows with NULL come first if NULL is a fault. That is also the order in which Postgres can use a plain index.
    """
    queries = objects.queries[table.kind]
    sent_at = table.columns.get("sent_at")
    updated_at = table.watermark or table.columns.get(WATERMARK)
    time_column = updated_at or sent_at
    for order in ((time_column,), table.keys) if time_column is not None else (table.keys,):
        nulls: Literal["first", "last"] = "last" if updated_at is not None and order is not table.keys else "first"
        with bounded(connection):
            seen = _read(connection, settings, objects, table, queries.newest(order, ROWS_MAX, nulls=nulls))
            seen.order = " and ".join(column.name for column in order)
            return seen
    return None


@contextmanager
def bounded(connection: sa.Connection) -> Iterator[None]:
    """Run a block in a savepoint, then roll it back; on Postgres forbid writes too.

    A statement that takes longer than ``TIMEOUT_S`` ends the block without an error. On SQLite the limit applies
    to the block as a whole.
    """
    try:
        with connection.begin_nested() as reading:
            if connection.dialect.name == POSTGRES:
                connection.exec_driver_sql("set transaction read only")
                connection.exec_driver_sql(f"set local statement_timeout = {round(TIMEOUT_S * 1000)}")
                yield
            else:
                driver: Any = connection.connection.driver_connection
                give_up_at = time.monotonic() + TIMEOUT_S
                driver.set_progress_handler(lambda: time.monotonic() > give_up_at, _STEPS)
                try:
                    yield
                finally:
                    driver.set_progress_handler(None, 0)
            reading.rollback()
    except DRIVER_ERRORS as error:
        if not _took_too_long(getattr(error, "orig", error)):
            raise


def _took_too_long(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
    return isinstance(error, psycopg.errors.QueryCanceled)


def _read(connection: sa.Connection, settings: Settings, objects: Objects, table: Table, newest: Query) -> _Seen:
    keys: list[Key] = [(*row, None)[:2] for row in newest.rows(connection, {})]
    seen = _Seen(rows=len(keys), objects=len(set(keys)))
    rest = iter(keys)
    while batch := list(islice(rest, BATCH_ROWS)):
        changed = objects.read(connection, (Change(table.kind, "U", key, (None, None)) for key in batch))
        meaning = translate(changed, settings.events)
        for fault in meaning.faults:
            seen.faults[fault.reason].append(fault)
        times = (event.sent_at for event in meaning.events if isinstance(event, MessageUpdated))
        seen.sent_at = max([seen.sent_at, *times])
        for event in islice(meaning.events, BODIES_MAX - len(seen.bodies)):
            with suppress(EventTooLargeError):
                seen.bodies.append(encode(event, settings.listener.message_bytes_max)[0].decode())
        for one in changed:
            for name, value in _unlisted(table, one):
                seen.unlisted[name][shortened(printable(value), SHOWN_CHARACTERS_MAX)] = None
    return seen


def _unlisted(table: Table, changed: ChangedObject) -> Iterator[tuple[str, Value]]:
    """Yield each field with a value outside its set of values, and the value. NULL is not a value.

    The mapping has already translated the values that it lists, so a listed value is one of the translations.
    """
    if isinstance(changed, Gone | Unreadable) or (isinstance(changed, Metadata) and not changed.entries):
        return
    for name in table.columns:
        value = getattr(changed, name) if name in _CLOSED or name in _OPEN else None
        if value is None or (name == "subject" and "identifier" not in table.columns):  # one column with both
            continue
        if name in _CLOSED:
            try:
                _CLOSED[name](value)
            except UnfitValueError:
                yield name, value
        elif name in table.values and value not in table.values[name].values():
            yield name, value


def _warnings(table: Table, seen: _Seen) -> Iterator[str]:
    setting, where = f"database.tables.{table.kind}", f"the newest {seen.rows} by {seen.order}"
    for reason, faults in seen.faults.items():
        finding = f"{len(faults)} of {where} cannot be converted and would not be sent"
        yield f"{setting}: {finding}: {reason}; one is {faults[0].key}"
    if seen.rows >= ALL_MIN and "sent_at" in table.columns and "" < seen.sent_at < YEAR_END:
        column = table.columns["sent_at"].name
        yield f'{setting}.columns.sent_at: "{column}" has no time after 1970 in {where}; {TIME_FORMS}'
    for name, found in seen.unlisted.items():
        shown = listed((f'"{text}"' for text in found), SHOWN_MAX)
        effect = "would not be sent" if name in _CLOSED else "is sent unchanged"
        finding = f"does not list {shown}, found in {where}; a row with such a value {effect}"
        yield f'{setting}.values.{name}: {finding}; list each: {name} = {{ "THEIRS" = "OURS" }}'


def _without_values(refusal: DatabaseRefused) -> str:
    """Return the message of the database, unless it may quote a value of the row."""
    if (refusal.sqlstate or "").startswith(_BAD_VALUE):
        return f"a value cannot be cast (SQLSTATE {refusal.sqlstate})"
    return str(refusal)
