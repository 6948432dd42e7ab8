"""``airy-trio check``: report all problems that would keep the server from starting or working, and change nothing.

It checks what the server checks when it starts, with the same functions, but does not stop at the first fault. In
addition it checks rights, durability, poolers, the newest rows, and writes for which triggers do not fire, and reports
files that the server would create.
"""

import stat
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import sqlalchemy as sa
import trio
from attrs import field, frozen

from airy_trio import migrate
from airy_trio.app.build import TableChecks
from airy_trio.app.server import load_certificate
from airy_trio.auth.keys import KeyServer, KeysFault, source_of
from airy_trio.capture import polling, triggers
from airy_trio.capture.change_log import ChangeLog, identified_point
from airy_trio.capture.feed import CANNOT_SEE, Consumer, ResumePointTooNew
from airy_trio.capture.mapping import Tables
from airy_trio.capture.polling import Identity
from airy_trio.capture.queries import Queries
from airy_trio.check import rows, servers
from airy_trio.check.servers import Finding, Weight
from airy_trio.database import (
    POSTGRES,
    SQLITE,
    Names,
    dialect_of,
    quote_identifier,
    sqlite_path,
)
from airy_trio.errors import AiryTrioError, FaultsError, MappingError, StartError
from airy_trio.log.current import TYPE_OF, CurrentState
from airy_trio.log.leadership import ForeignLogError
from airy_trio.log.options import find_store
from airy_trio.log.sql.store import state_row
from airy_trio.log.sql.tables import log_tables
from airy_trio.log.store import Bounds, StoreUnavailable
from airy_trio.settings import Settings
from airy_trio.websocket.tls import CERTIFICATE, KEY

T = TypeVar("T")
_Log: TypeAlias = tuple[Bounds, str | None]
"""The bounds of an event store, and its resume point."""

STORE_TIMEOUT_S: Final = 10.0


@frozen
class Report:
    """The findings, each once and in order."""

    _lines: dict[Finding, None] = field(factory=dict)

    def update(self, findings: Iterable[Finding]) -> None:
        """Add findings, except those that the report has already."""
        self._lines.update(dict.fromkeys(findings))

    def add(self, weight: Weight, lines: Iterable[str]) -> None:
        """Add findings of one weight."""
        self.update((weight, line) for line in lines)

    def of(self, weight: Weight) -> tuple[str, ...]:
        """Return the findings of one weight."""
        return tuple(line for each, line in self._lines if each == weight)


@frozen
class _Place:
    """A database and the setting that names it."""

    url: str
    setting: str

    @property
    def dialect(self) -> str:
        return dialect_of(self.url)

    def named(self, lines: Iterable[str]) -> Iterator[str]:
        return (f"{self.setting}: {line}" for line in lines)


@frozen
class _Application:
    """The event log that records the changes, and a synchronous ``ChangeFeed.identified``."""

    consumer: Consumer | None
    identified: Callable[[str], str | None]


def check(settings: Settings) -> Report:
    """Check everything that the settings name. Synchronous; findings are not raised."""
    report = Report()
    _Check(settings, report).everything()
    return report


@frozen
class _Check:
    """One check. A method that returns something reports what it finds, too."""

    settings: Settings
    report: Report

    def everything(self) -> None:
        self.certificate()
        self.credentials()
        self.report.add("warning", self.settings.exposures())
        application, log = self.application(), self.store()
        if log is None:
            return
        bounds, resume_point = log
        self.report.add("note", _completeness(self.settings, bounds))
        if application is None:
            return
        if self.settings.log_is_shareable and resume_point is not None:
            try:
                if application.identified(resume_point) is None:
                    raise ForeignLogError(self.settings.log_words)  # noqa: TRY301 - both are reported below
            except (ForeignLogError, ResumePointTooNew) as error:
                self.report.add("problem", [f"log: {error}"])
                return
        consumer = application.consumer
        if consumer is not None and consumer.epoch != bounds.epoch:
            finding = f"the changes are recorded into another event log ({consumer.store})"
            again = "with these settings a new epoch begins, and clients must reload"
            self.report.add("warning", [f"log: {finding}; {again}"])

    def certificate(self) -> None:
        """Check the certificate and its key, if TLS is configured: whether they are usable, and for how long."""
        options = self.settings.listener
        try:
            found = load_certificate(options)
        except StartError as error:
            self.report.add("problem", error.faults)
            return
        if found is None:
            return
        now = datetime.now(UTC)
        warnings = list(found.warnings(now))
        self.report.add("warning", warnings)
        if not warnings:
            names = ", ".join(found.names) or "no host"
            self.report.add("note", [f"{CERTIFICATE}: valid for {names}, for {found.days_left(now)} more days"])
        if Path(options.tls_key).stat().st_mode & stat.S_IROTH:
            self.report.add("warning", [f"{KEY}: {options.tls_key}: every user of this machine can read the key"])

    def credentials(self) -> None:
        """Check the grants of web tokens, and load their keys as the server would."""
        options = self.settings.auth
        if options.mode != "jwt":
            return
        if not options.jwt_require_grants:
            channels, destinations = options.grant_claims
            finding = f"a token without {channels} may read all events, unless {destinations} limits it"
            remedy = "set it to true if every token carries a grant"
            self.report.add("warning", [f"auth.jwt_require_grants: {finding}; {remedy}"])
        if options.secret_is_shared:
            return
        source = source_of(options)
        try:
            trio.run(source.load)
        except KeysFault as fault:
            if isinstance(source, KeyServer):  # it may recover
                self.report.add("warning", [f"auth.jwt_key: {fault}; until this is resolved no client can connect"])
            else:
                self.report.add("problem", [f"auth.jwt_key: {source.words}: {fault}"])

    def application(self) -> _Application | None:
        """Check the application's database. Return what decides which event log it can use, or None if not known."""
        options = self.settings.database
        place = _Place(options.url, "database.url")
        if place.dialect == SQLITE:
            path = sqlite_path(options.url)
            self.report.add("problem", servers.file_refusals())
            try:
                migrate.require_file(path)
            except StartError as error:
                self.report.add("problem", error.faults)
                return None
            if not self.settings.changes.reads_only:
                self.report.add("problem", place.named(servers.missing_file_rights(path)))
                self.connected(place, servers.try_to_write, immediate=True)
        elif options.direct_url:
            pooled, place = place, _Place(options.direct_url, "database.direct_url")
            found = self.connected(pooled, Identity.of)
            expected = self.connected(place, Identity.of)
            if None not in (found, expected) and found != expected:
                self.report.add("problem", [f"{place.setting}: this is another database than the one of database.url"])
            self.connected(
                pooled, lambda connection: self.report.add("warning", pooled.named(servers.shared_pool(connection)))
            )
        return self.connected(place, lambda connection: self.tables(connection, place))

    def tables(self, connection: sa.Connection, place: _Place) -> _Application | None:
        """Check the mapped tables and the server, then the change log. Return as ``application`` does."""
        settings, report = self.settings, self.report
        names, reads_only = Names.of(settings.database.url, settings.database.schema), settings.changes.reads_only
        tables: Tables = {}
        try:
            tables = TableChecks(settings).inspect(connection)
        except MappingError as error:
            report.add("problem", error.faults)
        for newest in rows.newest_rows(connection, settings, tables):
            report.update(newest.findings)
            if newest.all_fail:
                finding = "none of the newest rows can be converted, so the server would send nothing of this table"
                report.add("problem", [f"database.tables.{newest.kind}: {finding}"])
        report.add("warning", _missing_index(names.dialect, tables))
        if reads_only and tables:
            report.add("note", [f"watching {', '.join(tables)} by updated_at; it cannot see {CANNOT_SEE}"])
        if not self.server(connection, names, place):
            return None  # our tables are of no interest then
        if reads_only:
            identity = Identity.of(connection)
            return _Application(None, lambda point: polling.identified(point, identity, names.dialect))
        if names.dialect == POSTGRES:
            report.update(servers.skipped_writes(connection, tables, names, deletes=settings.logs_deletes))
        return self.change_log(connection, names, tables)

    def change_log(self, connection: sa.Connection, names: Names, tables: Tables) -> _Application | None:
        """Check our tables and triggers in the application's database. Return as ``application`` does."""
        settings, report = self.settings, self.report
        schema, missing = TableChecks(settings).installed(connection, tables)
        if schema.newer is not None and not schema.faults:
            report.add("note", [f"database: {schema.newer}, with which this version works"])
            report.add("note", triggers.outdated(connection, tables, names, deletes=settings.logs_deletes))
        if missing:
            if schema.newer is None and settings.database.migrate and not schema.incomplete:
                report.add("note", [f"{line} (database.migrate is true: the server does it)" for line in missing])
            else:
                report.add("problem", missing)
            return None
        if tables:
            report.add("note", [f"watching {', '.join(tables)}"])
        log = ChangeLog(names)
        history = log.history(connection)
        if history is None:
            return None
        return _Application(log.consumer(connection), lambda point: identified_point(point, history.source))

    def server(self, connection: sa.Connection, names: Names, place: _Place) -> bool:
        """Check the database server or file itself; return whether it can be used.

        If we only read (capture by ``updated_at``), it may be a standby, and we need no tables of ours.
        """
        if names.dialect == SQLITE:
            synchronous = servers.pragma(sqlite_path(place.url), "synchronous")
            self.report.add("warning", place.named(servers.file_durability(synchronous)))
            return True
        reads_only = self.settings.changes.reads_only
        problems = [*servers.refusals(connection, reads_only=reads_only)]
        problems += servers.missing_identity(connection)
        if not reads_only:
            problems += servers.missing_rights(connection, names, servers.CHANGES)
        self.report.add("problem", place.named(problems))
        self.report.add("warning", place.named(servers.durability(connection, reads_only=reads_only)))
        self.report.add("warning", place.named(servers.lacks_session(connection)))
        self.report.add("warning", place.named(servers.shared_pool(connection)))
        return not problems

    def store(self) -> _Log | None:
        """Check the event store. Return its bounds and resume point, or None if they are not known."""
        settings = self.settings
        if settings.log.store == "memory":
            self.report.add("note", ['log.store: "memory" ends with the process; after each start clients must reload'])
            return None
        if settings.log.store != "sql":
            return self.opened_store()
        place = _Place(settings.log_url, "log.url")
        if place.dialect == SQLITE:
            path = sqlite_path(place.url)
            self.report.add("problem", place.named(servers.missing_file_rights(path)))
            if not path.exists():
                found = f"the SQLite file {path} does not exist; the server creates it"
                self.report.add("note", place.named([found]))
                return None
            self.connected(place, servers.try_to_write, immediate=True)
        return self.connected(place, lambda connection: self.log(connection, place))

    def log(self, connection: sa.Connection, place: _Place) -> _Log | None:
        """Check the tables of an ``sql`` store. Return as ``store`` does."""
        options, report = self.settings.database, self.report
        names = Names(connection.dialect.name, options.schema)
        problems: list[str] = []
        if names.dialect == POSTGRES:
            problems += servers.missing_rights(connection, names, servers.LOG)
            if place.url != options.url:  # else checked already
                problems += servers.refusals(connection)
                report.add("warning", place.named(servers.durability(connection)))
                if servers.is_pooled(connection):
                    finding = "this goes through a pooler or another proxy, but appends and LISTEN need a session"
                    report.add("warning", place.named([f"{finding}; name PostgreSQL itself here"]))
        problems = [*migrate.encoding_faults(connection, self.settings), *place.named(problems)]
        report.add("problem", problems)
        if problems:
            return None
        schema = migrate.schema_of(connection, "log", options)
        if schema.faults:
            is_due = options.migrate and schema.newer is None and not schema.incomplete
            weight: Weight = "note" if is_due else "problem"
            report.add(weight, [f"log: {line}" for line in schema.faults])
            return None
        if schema.newer is not None:
            report.add("note", [f"log: {schema.newer}, with which this version works"])
        try:
            state = state_row(connection.execute(log_tables(names).bounds))
        except StoreUnavailable as error:
            report.add("problem", [f"log: {error}"])
            return None
        return state.bounds, state.resume_point

    def opened_store(self) -> _Log | None:
        """Check a store that is opened by its URL: Redis, or one of another package. Return as ``store`` does."""
        options = self.settings.log

        async def read() -> _Log:
            with trio.fail_after(STORE_TIMEOUT_S):
                async with find_store(options.store)(options.url) as store:
                    return await store.bounds(), await store.resume_point()

        try:
            return trio.run(read)
        except (AiryTrioError, ExceptionGroup, trio.TooSlowError) as error:
            self.report.add("problem", _faults_of(error))
        return None

    def connected(self, place: _Place, work: Callable[[sa.Connection], T], *, immediate: bool = False) -> T | None:
        """Do the work with a connection; if the database is unavailable or refuses it, report a problem.

        ``immediate``: see ``Database.run_sync``.
        """
        read_only = self.settings.changes.reads_only and place.setting == "database.url"
        timeout_s = self.settings.database.connect_timeout_s
        try:
            with servers.opened(place.url, timeout_s, setting=place.setting, read_only=read_only) as database:
                return database.run_sync(work, immediate=immediate)
        except StartError as error:
            self.report.add("problem", error.faults)
            return None


def _completeness(settings: Settings, bounds: Bounds) -> Iterator[str]:
    """Yield lines about the types whose current state is kept: whether it has all their objects."""
    mapped = {TYPE_OF[kind] for kind in settings.tables.mapped}
    kept = mapped.intersection(settings.log.keep_current)
    state = CurrentState.of(bounds, bounds.head)
    missing = state.missing(kept)
    if whole := ", ".join(sorted(kept - missing)):
        yield f"log.keep_current: replay:current has {whole} completely"
    if missing:
        run = "run: airy-trio backfill --config FILE"
        # All rows of a backfill may still wait in the change log, for example after `migrate --backfill`.
        remedy = f"a server has to record a backfill; if none waits for that, {run}"
        if missing <= state.filling:
            remedy = f"a backfill has begun and is not complete yet; if none is running and a server records, {run}"
        elif settings.changes.reads_only:
            remedy = f'with changes.capture "{settings.changes.capture}" there is no backfill'
        yield f"log.keep_current: replay:current does not have {', '.join(sorted(missing))} completely; {remedy}"


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


def _faults_of(error: Exception) -> Iterator[str]:
    """Yield the faults of an event store that cannot be used. It may be of another package, with tasks of its own."""
    match error:
        case FaultsError():
            yield from error.faults
        case ExceptionGroup():
            for one in error.exceptions:
                yield from _faults_of(one)
        case trio.TooSlowError():
            yield f"log.store: the event store has not answered within {STORE_TIMEOUT_S} s"
        case _:
            yield f"log.store: the event store cannot be used: {error}"
