"""``airy-trio backfill``: write the keys of existing rows into the change log, as if the rows had changed.

The recorder then reads them like any other change, with the same order, mapping and faults. The keys come in pages, one
short transaction for each. That is safe while the application writes: the recorder reads each row in the snapshot of
its batch, and a row that is written between two pages is logged by its trigger.

Pages follow the database's own order of the key columns, and the database compares them, so any collation works. A page
ends with a key and includes all rows that are equal to it: with a collation that ignores case, two keys may differ and
still have the same place in the order. No page goes beyond the last key just after the beginning of the backfill, so a
backfill ends however fast the table grows. A row with a NULL in its key cannot become an event and is left out.

A backfill marks its begin and its end in the change log (``feed.Backfill``). Between the marks, ``change_state`` has
the token and the last key of each backfill, updated in the transaction of each page, so a backfill that was killed can
continue. If two processes continue the same backfill, the first to write wins and the other one gets
``BackfillTaken``. Keys are stored in hexadecimal, because not every text is valid in JSON.

With a rate, a pause follows each page. On SQLite the pause is at least as long as the page took, so that the
application gets the write lock. If too many rows wait in the change log, the backfill waits until a server has recorded
some.
"""

import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
import trio
from attrs import define, evolve, frozen
from cattrs.preconf.json import make_converter

from airy_trio import migrate
from airy_trio.app.build import TableChecks, open_database, wait_until_available
from airy_trio.capture.change_log import TABLE, ChangeLog
from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import KINDS, SINGULAR, Column, Table
from airy_trio.capture.objects import MARKS, WRITTEN
from airy_trio.capture.triggers import SQLITE_NOW_MS, SQLITE_TOKEN
from airy_trio.database import (
    POSTGRES,
    SQLITE,
    Database,
    DatabaseRefused,
    Names,
    escape_colons,
    quote_identifier,
    quote_text,
    sqlite_path,
)
from airy_trio.errors import AiryTrioError, StartError, Unavailable
from airy_trio.log.current import TYPE_OF
from airy_trio.retry import FIRST_S, until_available
from airy_trio.settings import Settings
from airy_trio.terminal import ProgressReport

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
Place: TypeAlias = tuple[tuple[str, str | int | float], ...]
"""A place in the order of a table's keys: the storage class and the value of each key column. Texts are hexadecimal."""
_BEGIN, _END = MARKS
_TOKEN_BYTES: Final = 4
_CONVERTER: Final = make_converter()
_ROWS_ABOUT: Final = sa.text("select reltuples from pg_class where oid = to_regclass(:name)")


@frozen(kw_only=True)
class BackfillOptions:
    """What to send, and how fast.

    ``names``: the tables, by kind or type; none: those of ``[log] keep_current``. ``rate``: rows per second.
    ``restart``: begin again instead of continuing an interrupted backfill.
    """

    names: Sequence[str] = ()
    rate: float | None = None
    restart: bool = False


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
    url = database.session_url
    names = Names.of(url, database.schema)
    if names.dialect == SQLITE:
        migrate.require_file(sqlite_path(url))
    opened = open_database(url, database)
    try:
        checks = TableChecks(settings)
        tables = await wait_until_available(lambda: opened.run(checks.require_tables), database, "database.url")
        work = _Backfill(opened, names, options, report)
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
    mapped = settings.tables.mapped
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
        return f"{sent}; their types are not in log.keep_current, so replay:current has them in the recent window only"
    return f"{sent}, and replay:current has {', '.join(whole)} completely; airy-trio check reports it"


class BackfillTaken(AiryTrioError):
    """Another process has continued this backfill, or has begun a new one of the same table."""


@frozen(kw_only=True)
class Progress:
    """The progress of a backfill. ``keys_of``: the table and its key columns. ``after``: the last key that was written.

    ``until``: the last key when it was ``bounded``, just after it began; None if there was none. ``rows``: rows so far,
    roughly.
    """

    token: str
    keys_of: tuple[str, ...]
    after: Place | None = None
    until: Place | None = None
    rows: int = 0
    bounded: bool = False

    @property
    def is_done(self) -> bool:
        """Whether all keys are written."""
        return self.bounded and self.after == self.until


class TableBackfill:
    """Units of work for the backfill of one table. Each needs a transaction of its own, in READ COMMITTED."""

    def __init__(self, names: Names, table: Table) -> None:
        self._names, self._table = names, table
        self._postgres = names.dialect == POSTGRES
        self._log = ChangeLog(names)
        self._keys_of = (table.schema or "", table.name, *(column.name for column in table.keys))
        self._name = escape_colons(table.quoted)
        self._keys = [f"t.{escape_colons(quote_identifier(column.name))}" for column in table.keys]
        self._present = " and ".join(f"{key} is not null" for key in self._keys)

    def rows_about(self, connection: sa.Connection) -> int | None:
        """Return the approximate number of rows without reading the table; None if it is not known."""
        if not self._postgres:
            return None
        found = connection.execute(_ROWS_ABOUT, {"name": self._table.quoted}).scalar_one()
        return int(found) if found > 0 else None

    def begin(self, connection: sa.Connection, *, restart: bool = False) -> Progress:
        """Return the progress of the unfinished backfill; if there is none, or with ``restart``, begin one."""
        found = self._stored(connection).get(self._table.kind)
        if found is not None and found.keys_of == self._keys_of and not restart:
            return found
        begun = Progress(token=f"backfill-{secrets.token_hex(_TOKEN_BYTES)}", keys_of=self._keys_of)
        self._mark(connection, _BEGIN, begun.token)
        self._replace(connection, found, begun)
        return begun

    def bound(self, connection: sa.Connection, progress: Progress) -> Progress:
        """Store the last key that there is, once ``begin`` is committed; return the progress with it.

        A row that this does not see was committed later, so its trigger's change is recorded with the mark of the begin
        or after it. In the transaction of that mark, a row could be recorded before the mark and not be seen.
        """
        last = self._place(connection, self._present, [f"{key} desc" for key in self._keys], {"offset": 0})
        reached = evolve(progress, until=last, bounded=True)
        self._replace(connection, progress, reached)
        return reached

    def write_page(self, connection: sa.Connection, progress: Progress, limit: int) -> Progress:
        """Write the keys of about ``limit`` rows and return the new progress. Raises ``BackfillTaken``."""
        condition, values = self._between(progress, progress.until)
        end = self._place(connection, condition, self._keys, values | {"offset": limit - 1})
        after = progress.until if end is None else end  # the last page has fewer rows
        written = self._write(connection, progress, after)
        reached = evolve(progress, after=after, rows=progress.rows + (written if end is None else limit))
        self._replace(connection, progress, reached)  # last, because it takes a lock that recorders wait for
        return reached

    def end(self, connection: sa.Connection, progress: Progress) -> None:
        """Write the end mark and remove the stored progress. Raises ``BackfillTaken``."""
        self._mark(connection, _END, progress.token)
        self._replace(connection, progress, None)

    def _write(self, connection: sa.Connection, progress: Progress, end: Place | None) -> int:
        """Write each key of the page once; return their number."""
        condition, values = self._between(progress, end)
        names = ("key_1", "key_2")[: len(self._keys)]
        # On SQLite keys that the collation considers equal must stay different.
        form = "cast({} as text) as {}" if self._postgres else "{} collate binary as {}"
        written = map(form.format, self._keys, names)
        found = f"select distinct {', '.join(written)} from {self._name} t where {condition}"  # noqa: S608 - names quoted
        return self._insert(connection, WRITTEN, names, f"from ({found}) as airy_page", values)

    def _mark(self, connection: sa.Connection, operation: str, token: str) -> None:
        self._insert(connection, operation, ("key_1",), "from (select cast(:token as text) as key_1) as airy_mark",
                     {"token": token})  # fmt: skip

    def _insert(
        self, connection: sa.Connection, operation: str, names: Sequence[str], source: str, values: dict[str, Any]
    ) -> int:
        columns, made = ["kind", "operation", *names], [quote_text(self._table.kind), quote_text(operation), *names]
        if not self._postgres:
            columns, made = [*columns, "at", "token"], [*made, SQLITE_NOW_MS, SQLITE_TOKEN]
        log = escape_colons(self._names.quoted(TABLE))
        statement = f"insert into {log} ({', '.join(columns)}) select {', '.join(made)} {source}"
        return connection.execute(sa.text(statement), values).rowcount

    def _between(self, progress: Progress, end: Place | None) -> tuple[str, dict[str, Any]]:
        """Return the condition for the rows of a page, and its parameters."""
        conditions, values = [self._present], dict[str, Any]()
        for name, comparison, place in (("after", ">", progress.after), ("end", "<=", end)):
            if place is not None:
                bound = [self._bound(f"{name}_{i}", column, value, values)
                         for i, (column, value) in enumerate(zip(self._table.keys, place, strict=True))]  # fmt: skip
                conditions.append(f"({', '.join(self._keys)}) {comparison} ({', '.join(bound)})")
        return " and ".join(conditions), values

    def _bound(self, name: str, column: Column, value: tuple[str, str | int | float], values: dict[str, Any]) -> str:
        """Return the expression of one value of a key, and add its parameter."""
        storage, stored = value
        values[name] = stored
        if self._postgres:
            # Cast through jsonb, which has no collation. The text would have that of the encoding's name, "C", and
            # Postgres could not decide between it and the column's collation.
            text = f"convert_from(decode(:{name}, 'hex'), getdatabaseencoding())"
            return f"cast(to_jsonb({text}) #>> '{{}}' as {escape_colons(column.sql_type)})"
        if isinstance(stored, str):
            values[name] = bytes.fromhex(stored)
        return f"cast(:{name} as text)" if storage == "text" else f":{name}"

    def _place(
        self, connection: sa.Connection, condition: str, order: Sequence[str], values: dict[str, Any]
    ) -> Place | None:
        """Return the place of the row at ``:offset`` among the rows that fulfil a condition, in the given order."""
        if self._postgres:
            form = "'text', encode(convert_to(cast({0} as text), getdatabaseencoding()), 'hex')"
        else:
            form = "typeof({0}), case when typeof({0}) in ('text', 'blob') then hex(cast({0} as blob)) else {0} end"
        encoded = ", ".join(map(form.format, self._keys))  # a ``Place`` is two values for each key column
        rows = f"select {encoded} from {self._name} t where {condition} order by {', '.join(order)}"  # noqa: S608 - names quoted
        row = connection.execute(sa.text(f"{rows} limit 1 offset :offset"), values).first()
        return None if row is None else tuple(zip(row[::2], row[1::2], strict=True))

    def _stored(self, connection: sa.Connection) -> dict[str, Progress]:
        """Return the unfinished backfills by kind, locked until the end of the transaction."""
        text = connection.execute(sa.select(self._log.state.c.backfill).with_for_update()).scalar_one_or_none()
        return _CONVERTER.loads(text or "{}", dict[str, Progress])  # ignores what a newer version may store in addition

    def _replace(self, connection: sa.Connection, before: Progress | None, now: Progress | None) -> None:
        """Replace the stored progress of this table; None: there is none.

        Raises ``BackfillTaken`` if the stored one is not ``before``.
        """
        stored = self._stored(connection)
        if stored.pop(self._table.kind, None) != before:
            raise BackfillTaken(f"another command has continued, restarted or ended the backfill of {self._table.kind}")
        if now is not None:
            stored[self._table.kind] = now
        text = _CONVERTER.dumps(stored, dict[str, Progress]) if stored else None
        connection.execute(sa.update(self._log.state).values(backfill=text))


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
                await trio.sleep(FIRST_S)
                progress = await until_available(partial(self._begin, unit))  # the page may have been written or not
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

    async def _page(self, unit: TableBackfill, progress: Progress) -> Progress:
        """Write a page, and pause."""
        limit, rate = PAGE_ROWS_MAX, self.options.rate
        if rate is not None:
            limit = max(1, int(min(limit, rate * PAGE_S_MAX)))  # in this order, because a rate may be infinite
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
        read = partial(waiting, names=self.names, limit=WAITING_ROWS_MAX + 1)
        rows, first = await self.database.run(read)
        moved_at = trio.current_time()
        while rows > WAITING_ROWS_MAX:
            await trio.sleep(WAITING_POLL_S)
            before = first
            rows, first = await self.database.run(read)
            if first != before:
                moved_at = trio.current_time()
            elif trio.current_time() >= moved_at + WAITING_PATIENCE_S and not self.warned:
                self.warned = True
                self.report.note(
                    f"more than {WAITING_ROWS_MAX} rows wait in the change log, and no server seems to record "
                    "them; start one, and the backfill continues by itself"
                )


def waiting(connection: sa.Connection, names: Names, limit: int) -> tuple[int, sa.Row[Any] | None]:
    """Count the rows of the change log, up to ``limit``; return also its first row, which changes with recording."""
    log = ChangeLog(names)
    first = connection.execute(sa.select(*log.order).order_by(*log.order).limit(1)).first()
    counted = sa.select(sa.literal(1)).select_from(log.rows).limit(limit).subquery()
    return connection.execute(sa.select(sa.func.count()).select_from(counted)).scalar_one(), first
