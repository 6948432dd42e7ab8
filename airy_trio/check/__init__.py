"""``airy-trio check``: report all problems that would keep the server from starting or working, and change nothing.

It checks what the server checks when it starts, with the same functions, but does not stop at the first fault. In
addition it checks rights, durability, poolers, the newest rows, and writes for which triggers do not fire, and reports
files that the server would create.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import sqlalchemy as sa
import trio
from attrs import frozen

from airy_trio import migrate
from airy_trio.app.build import is_shareable, words_of
from airy_trio.capture import polling, resume_points, triggers
from airy_trio.capture.change_log import ChangeLog
from airy_trio.capture.feed import CANNOT_SEE, Consumer, ResumePointTooNew
from airy_trio.capture.inspection import inspect
from airy_trio.capture.mapping import Tables
from airy_trio.capture.polling import Identity
from airy_trio.capture.queries import Queries
from airy_trio.check import postgres, rows, sqlite
from airy_trio.check.report import Finding, Report, check_certificate, check_grants, check_keys
from airy_trio.database import (
    POSTGRES,
    ROW_SECURITY_OFF,
    SQLITE,
    Database,
    DatabaseError,
    Names,
    postgres_engine,
    quote_identifier,
    shown,
    sqlite_engine,
    sqlite_path,
)
from airy_trio.errors import AiryTrioError, FaultsError, MappingError, StartError
from airy_trio.log.leadership import ForeignLogError
from airy_trio.log.options import find_store
from airy_trio.log.sql.tables import log_tables
from airy_trio.settings import Settings

__all__ = ["Finding", "Report", "check"]

T = TypeVar("T")

STORE_TIMEOUT_S: Final = 10.0


@frozen
class _Place:
    """A database and the setting that names it."""

    url: str
    setting: str

    @property
    def dialect(self) -> str:
        return sa.make_url(self.url).get_backend_name()


@frozen
class _Log:
    """The state of an event store, and its place in words."""

    epoch: str
    resume_point: str | None
    words: str


@frozen
class _Application:
    """The event log that the changes are recorded into, and whether a resume point is of another database."""

    consumer: Consumer | None
    is_foreign: Callable[[str], bool]


def check(settings: Settings) -> Report:
    """Check everything that the settings name. Synchronous; findings are not raised."""
    report = Report()
    check_certificate(settings.listener, report)
    check_grants(settings.auth, report)
    check_keys(settings.auth, report)
    found = _check_application(settings, report)
    log = _check_store(settings, report)
    if found is None or log is None:
        return report
    if is_shareable(settings) and _is_foreign(log, found, report):
        return report
    consumer = found.consumer
    if consumer is not None and consumer.epoch != log.epoch:
        finding = f"the changes are recorded into another event log ({consumer.store})"
        report.add("warning", [f"log: {finding}; with these settings a new epoch begins, and clients must reload"])
    return report


def _is_foreign(log: _Log, application: _Application, report: Report) -> bool:
    """Report and return whether the server would refuse this event log, because it is of another database."""
    try:
        if log.resume_point is None or not application.is_foreign(log.resume_point):
            return False
    except ResumePointTooNew as error:
        report.add("problem", [f"log: {error}"])
        return True
    report.add("problem", [f"log: {ForeignLogError(log.words)}"])
    return True


def _check_application(settings: Settings, report: Report) -> _Application | None:
    """Check the application's database. Return what decides which event log it can use, or None if not known."""
    options = settings.database
    place = _Place(options.url, "database.url")
    if place.dialect == SQLITE:
        path = sqlite_path(options.url)
        report.add("problem", sqlite.file_refusals())
        try:
            migrate.require_file(path)
        except StartError as error:
            report.add("problem", error.faults)
            return None
        if not settings.changes.reads_only:
            report.add("problem", _named(place, sqlite.missing_file_rights(path)))
            _connected(settings, place, report, sqlite.try_to_write)
    elif options.direct_url:
        pooled, place = place, _Place(options.direct_url, "database.direct_url")
        _compare(settings, pooled, place, report)
    return _connected(settings, place, report, lambda connection: _check_tables(connection, settings, place, report))


def _compare(settings: Settings, pooled: _Place, direct: _Place, report: Report) -> None:
    """Report if the two URLs lead to different databases. Faults of ``direct`` are reported by its own check."""
    found = _connected(settings, pooled, report, postgres.identity)
    expected = _connected(settings, direct, Report(), postgres.identity)
    if None not in (found, expected) and found != expected:
        report.add("problem", [f"{direct.setting}: this is another database than the one of {pooled.setting}"])
    _connected(settings, pooled, report, lambda connection: report.add("warning", _shared(connection, pooled)))


def _check_tables(connection: sa.Connection, settings: Settings, place: _Place, report: Report) -> _Application | None:
    """Check the mapped tables and the server, then the change log. Return as ``_check_application`` does."""
    names = Names.of(settings.database.url, settings.database.schema)
    tables: Tables = {}
    reads_only = settings.changes.reads_only
    try:
        tables = inspect(connection, settings.tables, watermarks=reads_only, holds_log=migrate.log_is_here(settings))
    except MappingError as error:
        report.add("problem", error.faults)
    rows.check_rows(connection, settings, tables, report)
    report.add("warning", _missing_index(names.dialect, tables))
    if reads_only:
        report.add(
            "note", [f"watching {', '.join(tables)} by updated_at; it cannot see {CANNOT_SEE}"] if tables else []
        )
        if not _check_server(connection, names, place, report, reads_only=True):
            return None
        identity = Identity.of(connection)
        return _Application(None, lambda point: polling.is_foreign(point, identity, names.dialect))
    if not _check_server(connection, names, place, report, reads_only=False):
        return None  # our tables are of no interest then
    if names.dialect == POSTGRES:
        postgres.check_triggers(connection, tables, names, report, deletes=settings.events.deletes)
    return _check_change_log(connection, settings, names, tables, report)


def _check_change_log(
    connection: sa.Connection, settings: Settings, names: Names, tables: Tables, report: Report
) -> _Application | None:
    """Check our tables and triggers in the application's database. Return as ``_check_application`` does."""
    deletes = settings.events.deletes
    missing = [f"database: {line}" for line in migrate.pending(connection, "changes", settings.database)]
    newer = migrate.ahead(connection, "changes", settings.database)
    if not missing:
        missing += triggers.faults(connection, tables, names, deletes=deletes, newer_schema=newer is not None)
        if newer is not None:
            report.add("note", [f"database: {newer}, with which this version works"])
            report.add("note", triggers.outdated(connection, tables, names, deletes=deletes))
    if newer is None and missing and settings.database.migrate:
        report.add("note", [f"{line} (database.migrate is true: the server does it)" for line in missing])
    else:
        report.add("problem", missing)
    if not missing:
        report.add("note", [f"watching {', '.join(tables)}"] if tables else [])
        log = ChangeLog(names)
        history = log.history(connection)
        if history is not None:
            source = history.source
            return _Application(log.consumer(connection), lambda point: resume_points.is_foreign(point, source))
    return None


def _missing_index(dialect: str, tables: Tables) -> Iterator[str]:
    """Yield a line if finding the owners of metadata needs a scan of the whole table of messages."""
    messages = tables.get("messages")
    if messages is None or "metadata" not in tables or not Queries(dialect, messages).wants_index:
        return
    columns = [messages.columns[name].name for name in ("conversation_id", "sent_at") if name in messages.columns]
    if dialect == SQLITE:
        index = f" {quote_identifier(f'{messages.name}_by_conversation')}"
    else:  # CONCURRENTLY is not possible on a partitioned table
        index = "" if messages.row_triggers else " CONCURRENTLY"
    statement = f"CREATE INDEX{index} ON {messages.quoted} ({', '.join(map(quote_identifier, columns))})"
    yield (
        f'table "{messages.name}" (messages) has no index that begins with "{columns[0]}", so each change of a '
        f"conversation's metadata reads the whole table; run: {statement}; then restart the server"
    )


def _check_server(connection: sa.Connection, names: Names, place: _Place, report: Report, *, reads_only: bool) -> bool:
    """Check the database server or file itself; return whether it can be used.

    If we only read (capture by ``updated_at``), it may be a standby, and we need no tables of ours.
    """
    if names.dialect == SQLITE:
        report.add("warning", _named(place, sqlite.durability(sqlite_path(place.url))))
        return True
    problems = [*(postgres.too_old if reads_only else postgres.refusals)(connection)]
    problems += postgres.missing_identity(connection)
    if not reads_only:
        problems += postgres.missing_rights(connection, names, postgres.CHANGES)
    report.add("problem", _named(place, problems))
    report.add("warning", _named(place, postgres.durability(connection, reads_only=reads_only)))
    if postgres.is_pooled(connection):
        finding = "this goes through a pooler or another proxy, but the lease needs a session"
        remedy = "name one that reaches PostgreSQL itself in database.direct_url"
        report.add("warning", [f"{place.setting}: {finding}; {remedy}"])
        report.add("warning", _shared(connection, place))
    return not problems


def _shared(connection: sa.Connection, place: _Place) -> Iterator[str]:
    """Yield a line if other programs use the same pooler as the same role, because then they share one pool."""
    if postgres.is_pooled(connection) and (others := postgres.others_of_our_role(connection)):
        role, programs = others
        finding = f'other programs use the pooler as the same role "{role}" ({", ".join(programs)})'
        yield f"{place.setting}: {finding} and share its connections with this server; give this server its own role"


def _check_store(settings: Settings, report: Report) -> _Log | None:
    """Check the event store. Return its state, or None if not known."""
    match settings.log.store:
        case "memory":
            report.add("note", ['log.store: "memory" ends with the process; after each start clients must reload'])
            return None
        case "sql":
            return _check_sql_store(settings, report)
        case _:
            return _check_opened_store(settings, report)


def _check_sql_store(settings: Settings, report: Report) -> _Log | None:
    place = _Place(settings.log.location(settings.database.url), "log.url")
    if place.dialect == SQLITE:
        path = sqlite_path(place.url)
        report.add("problem", _named(place, sqlite.missing_file_rights(path)))
        if not path.exists():
            report.add("note", [f"{place.setting}: the SQLite file {path} does not exist; the server creates it"])
            return None
        _connected(settings, place, report, sqlite.try_to_write)
    return _connected(settings, place, report, lambda connection: _check_log(connection, settings, place, report))


def _check_log(connection: sa.Connection, settings: Settings, place: _Place, report: Report) -> _Log | None:
    names = Names(connection.dialect.name, settings.database.schema)
    problems: list[str] = []
    if names.dialect == POSTGRES:
        problems += postgres.missing_rights(connection, names, postgres.LOG)
        if place.url != settings.database.url:  # else checked already
            problems += postgres.refusals(connection)
            report.add("warning", _named(place, postgres.durability(connection)))
            if postgres.is_pooled(connection):
                finding = "this goes through a pooler or another proxy, but appends and LISTEN need a session"
                report.add("warning", [f"{place.setting}: {finding}; name PostgreSQL itself here"])
    encoding = list(migrate.encoding_faults(connection, settings))
    report.add("problem", encoding)
    report.add("problem", _named(place, problems))
    if problems or encoding:
        return None
    missing = [f"log: {line}" for line in migrate.pending(connection, "log", settings.database)]
    newer = migrate.ahead(connection, "log", settings.database)
    report.add("note" if settings.database.migrate and newer is None else "problem", missing)
    if missing:
        return None
    if newer is not None:
        report.add("note", [f"log: {newer}, with which this version works"])
    state = connection.execute(log_tables(names).bounds).one()
    return _Log(state.epoch, state.resume_point, shown(place.url))


def _check_opened_store(settings: Settings, report: Report) -> _Log | None:
    """Check a store that is opened by its URL: Redis, or one of another package."""

    async def read() -> _Log:
        with trio.fail_after(STORE_TIMEOUT_S):
            async with find_store(settings.log.store)(settings.log.url) as store:
                return _Log((await store.bounds()).epoch, await store.resume_point(), words_of(settings.log))

    try:
        return trio.run(read)
    except (AiryTrioError, ExceptionGroup, trio.TooSlowError) as error:
        report.add("problem", _faults_of(error, "log.store"))
    return None


def _faults_of(error: Exception, setting: str) -> Iterator[str]:
    match error:
        case FaultsError():
            yield from error.faults
        case ExceptionGroup():
            for one in error.exceptions:
                yield from _faults_of(one, setting)
        case trio.TooSlowError():
            yield f"{setting}: the event store has not answered within {STORE_TIMEOUT_S} s"
        case _:
            yield f"{setting}: the event store cannot be used: {error}"


def _connected(settings: Settings, place: _Place, report: Report, work: Callable[[sa.Connection], T]) -> T | None:
    """Do the work with a connection; if the database is unavailable or refuses it, report a problem."""
    if place.dialect == POSTGRES:
        timeout_s = settings.database.connect_timeout_s
        engine = postgres_engine(place.url, connect_timeout_s=timeout_s, settings=ROW_SECURITY_OFF, pooled=True)
    else:
        read_only = settings.changes.reads_only and place.setting == "database.url"
        engine = sqlite_engine(sqlite_path(place.url), mode="ro" if read_only else "rw", lenient=True)
    try:
        return Database(engine).run_sync(work)
    except DatabaseError as error:
        report.add("problem", [f"{place.setting}: the database cannot be used: {error}"])
        return None
    finally:
        engine.dispose()


def _named(place: _Place, lines: Iterable[str]) -> Iterator[str]:
    return (f"{place.setting}: {line}" for line in lines)
