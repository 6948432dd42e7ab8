"""``airy-trio backfill``: send the existing rows, through the change log.

``capture.backfill`` does the work on one table; this module chooses the tables and the pace. With a rate, a pause
follows each page. On SQLite the pause is at least as long as the page took, so that the application gets the write
lock. If too many rows wait in the change log, the backfill waits until a server has recorded some.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

import sqlalchemy as sa
import trio
from attrs import define, frozen

from airy_trio import migrate
from airy_trio.app.build import open_database, require_tables, wait_until_available
from airy_trio.capture.backfill import Progress, TableBackfill, waiting
from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import KINDS, SINGULAR, Table
from airy_trio.database import POSTGRES, SQLITE, Database, DatabaseRefused, Names, sqlite_path
from airy_trio.errors import StartError, Unavailable
from airy_trio.log.current import TYPE_OF
from airy_trio.retry import Backoff
from airy_trio.settings import Settings

PAGE_ROWS_MAX: Final = 2000
"""Rows in one transaction: some tens of milliseconds."""
PAGE_S_MAX: Final = 0.5
"""With a rate, a page has at most the rows that the rate allows in this time."""
WAITING_ROWS_MAX: Final = 100_000
"""With more rows than this in the change log, a backfill waits for the recorder."""
WAITING_POLL_S: Final = 0.5
WAITING_PATIENCE_S: Final = 10.0
"""If nothing is recorded for this long, the backfill reports it once."""
KIND_OF: Final = {name: kind for kind in KINDS for name in (kind, SINGULAR[kind], TYPE_OF[kind])}
"""The kinds by each name that the command accepts."""


class ProgressReport(Protocol):
    """Receives the reports of a backfill."""

    def progress(self, kind: Kind, rows: int, about: int | None, rows_per_s: float) -> None:
        """Show how many rows of a table are done, the approximate total, and the rate."""
        ...

    def line(self, text: str) -> None:
        """Write a line that remains."""
        ...

    def note(self, text: str) -> None:
        """Write a line for the operator."""
        ...


@frozen(kw_only=True)
class BackfillOptions:
    """What to send, and how fast.

    ``names``: the tables, by kind or type; none: those of ``[log] keep_current``. ``rate``: rows per second.
    ``restart``: begin again instead of continuing an interrupted backfill. The others are for tests.
    """

    names: Sequence[str] = ()
    rate: float | None = None
    restart: bool = False
    page_rows: int = PAGE_ROWS_MAX
    waiting_rows: int = WAITING_ROWS_MAX


async def backfill(settings: Settings, options: BackfillOptions, report: ProgressReport) -> None:
    """Write the keys of all rows of some tables into the change log. When cancelled, it can be continued later.

    Raises ``StartError`` and other ``AiryTrioError``, with one line for each fault.
    """
    if settings.changes.reads_only:
        raise StartError(
            [f'changes.capture is "{settings.changes.capture}", which has no change log for a backfill to write into']
        )
    kinds = _kinds(settings, options.names)
    database = settings.database
    url = database.direct_url or database.url
    names = Names.of(url, database.schema)
    if names.dialect == SQLITE:
        migrate.require_file(sqlite_path(url))
    opened = open_database(url, database)
    try:
        check = partial(require_tables, settings=settings)
        tables = await wait_until_available(lambda: opened.run(check), database, "database.url")
        work = _Backfill(_committed(opened), names, options, report)
        for kind in kinds:
            await work.table(tables[kind])
    except (DatabaseRefused, Unavailable) as error:
        again = "; run it again to continue" if isinstance(error, Unavailable) else ""
        raise StartError([f"database.url: the database cannot be used: {error}{again}"]) from None
    finally:
        await opened.aclose()
    report.line(_what_follows(settings, kinds))


def _kinds(settings: Settings, wanted: Sequence[str]) -> Sequence[Kind]:
    """Return the requested tables, each once. Raises ``StartError``."""
    mapped = {kind for kind, table in settings.tables.items() if table.location(kind) is not None}
    if not wanted:
        kept = [kind for kind in KINDS if TYPE_OF[kind] in settings.log.keep_current and kind in mapped]
        if not kept:
            raise StartError(["log.keep_current names no type of a mapped table; name the tables of the backfill"])
        return kept
    faults, found = [], dict[Kind, None]()
    for name in wanted:
        kind = KIND_OF.get(name)
        if kind is None:
            faults.append(f'"{name}" is neither a kind ({", ".join(KINDS)}) nor a type of their events')
        elif kind not in mapped:
            faults.append(f"{kind}: no table is mapped (database.tables.{kind}.name)")
        else:
            found[kind] = None
    if faults:
        raise StartError(faults)
    return list(found)


def _what_follows(settings: Settings, kinds: Sequence[Kind]) -> str:
    whole = [TYPE_OF[kind] for kind in kinds if TYPE_OF[kind] in settings.log.keep_current]
    sent = "once a server has recorded these rows, clients have received them"
    if not whole:
        return f"{sent}; their types are not in log.keep_current, so replay:current does not have them"
    return f"{sent}, and replay:current has {', '.join(whole)} completely; airy-trio check reports it"


def _committed(opened: Database) -> Database:
    """Return the database with a snapshot for each statement (READ COMMITTED), independent of the role's default."""
    if opened.dialect == POSTGRES:
        return Database(opened.engine.execution_options(isolation_level="READ COMMITTED"))
    return opened


@define(eq=False)
class _Backfill:
    """One run over some tables. ``warned``: it has reported that no server seems to record."""

    database: Database
    names: Names
    options: BackfillOptions
    report: ProgressReport
    warned: bool = False

    async def table(self, table: Table) -> None:
        """Write the keys of one table, from the beginning or from where an earlier run ended.

        A page is tried again while the database is unavailable: on SQLite the application may hold the lock.
        """
        unit = TableBackfill(self.names, table)
        about = await self.database.run(unit.rows_about)
        progress = await self._begin(unit, restart=self.options.restart)
        before, begun_at = progress.rows, trio.current_time()
        if progress.after is not None:
            self.report.note(f"{table.kind}: continuing after {before} rows")
        while not progress.is_done:
            try:
                await self._until_recorded()
                progress = await self._page(unit, progress)
            except Unavailable as error:
                self.report.note(f"{table.kind}: trying again: {error}")
                progress = await self._stored(unit)
                continue
            took_s = max(trio.current_time() - begun_at, 1e-9)
            self.report.progress(table.kind, progress.rows, about, (progress.rows - before) / took_s)
        await self.database.write(partial(unit.end, progress=progress))
        took_s = trio.current_time() - begun_at
        self.report.line(f"{table.kind}: {progress.rows - before} rows written to the change log in {took_s:.1f} s")

    async def _begin(self, unit: TableBackfill, *, restart: bool = False) -> Progress:
        """Begin, or continue, in up to two transactions."""
        progress = await self.database.write(partial(unit.begin, restart=restart))
        return progress if progress.bounded else await self.database.write(partial(unit.bound, progress=progress))

    async def _stored(self, unit: TableBackfill) -> Progress:
        """Return the stored progress after an outage: the last page may have been written or not."""
        backoff = Backoff()
        while True:
            await trio.sleep(backoff.next_s())
            with suppress(Unavailable):
                return await self._begin(unit)

    async def _page(self, unit: TableBackfill, progress: Progress) -> Progress:
        """Write a page, and pause."""
        limit, rate = self.options.page_rows, self.options.rate
        if rate is not None:
            limit = max(1, min(limit, int(rate * PAGE_S_MAX)))
        begun_at = trio.current_time()
        reached = await self.database.write(partial(unit.write_page, progress=progress, limit=limit))
        took_s = trio.current_time() - begun_at
        pause_s = took_s if self.names.dialect == SQLITE else 0.0
        if rate is not None:
            pause_s = max(pause_s, (reached.rows - progress.rows) / rate - took_s)
        await trio.sleep(pause_s)
        return reached

    async def _until_recorded(self) -> None:
        """Wait while too many rows are in the change log."""
        read: Callable[[sa.Connection], tuple[int, int | None]] = partial(waiting, names=self.names)
        rows, first = await self.database.run(read)
        moved_at = trio.current_time()
        while rows > self.options.waiting_rows:
            await trio.sleep(WAITING_POLL_S)
            before = first
            rows, first = await self.database.run(read)
            if first != before:
                moved_at = trio.current_time()
            elif trio.current_time() >= moved_at + WAITING_PATIENCE_S and not self.warned:
                self.warned = True
                self.report.note(
                    f"about {rows} rows wait in the change log, and no server seems to record them; start one, "
                    "and the backfill continues by itself"
                )
