"""Backfill of one table: the keys of existing rows, written into the change log as if the rows had changed.

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
"""

import json
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from attrs import asdict, evolve, frozen

from airy_trio.capture.change_log import TABLE, ChangeLog
from airy_trio.capture.mapping import Column, Table
from airy_trio.capture.objects import MARKS, WRITTEN
from airy_trio.capture.triggers import SQLITE_NOW_MS, SQLITE_TOKEN
from airy_trio.database import POSTGRES, Names, quote_identifier, quote_text
from airy_trio.errors import AiryTrioError

Place: TypeAlias = tuple[tuple[str, str | int | float], ...]
"""A place in the order of a table's keys: the storage class and the value of each key column. Texts are hexadecimal."""
_BEGIN, _END = MARKS
_TOKEN_BYTES: Final = 4
_ROWS_ABOUT: Final = sa.text("select reltuples from pg_class where oid = to_regclass(:name)")


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
        self._store(connection, begun)
        return begun

    def bound(self, connection: sa.Connection, progress: Progress) -> Progress:
        """Store the last key that there is, once ``begin`` is committed; return the progress with it.

        A row that this does not see was committed later, so its trigger's change is recorded with the mark of the begin
        or after it. In the transaction of that mark, a row could be recorded before the mark and not be seen.
        """
        reached = evolve(progress, until=self._last(connection), bounded=True)
        self._require(connection, progress)
        self._store(connection, reached)
        return reached

    def write_page(self, connection: sa.Connection, progress: Progress, limit: int) -> Progress:
        """Write the keys of about ``limit`` rows and return the new progress. Raises ``BackfillTaken``."""
        end = self._boundary(connection, progress, limit)
        written = self._write(connection, progress, progress.until if end is None else end)
        reached = evolve(
            progress,
            after=progress.until if end is None else end,
            rows=progress.rows + (written if end is None else limit),
        )
        self._require(connection, progress)  # last, because it takes a lock that recorders wait for
        self._store(connection, reached)
        return reached

    def end(self, connection: sa.Connection, progress: Progress) -> None:
        """Write the end mark and remove the stored progress. Raises ``BackfillTaken``."""
        self._mark(connection, _END, progress.token)
        self._require(connection, progress)
        self._store(connection, None)

    def _last(self, connection: sa.Connection) -> Place | None:
        descending = ", ".join(f"{key} desc" for key in self._keys)
        return self._place(
            connection,
            f"select {self._encoded} from {self._name} t where {self._present} order by {descending} limit 1",  # noqa: S608 - names quoted
            {},
        )

    def _boundary(self, connection: sa.Connection, progress: Progress, limit: int) -> Place | None:
        """Return the key of the last row of the next page; None if fewer rows are left."""
        condition, values = self._between(progress, progress.until)
        return self._place(
            connection,
            f"select {self._encoded} from {self._name} t where {condition} "  # noqa: S608 - names quoted
            f"order by {', '.join(self._keys)} limit 1 offset :offset",
            values | {"offset": limit - 1},
        )

    def _write(self, connection: sa.Connection, progress: Progress, end: Place | None) -> int:
        """Write each key of the page once; return their number."""
        condition, values = self._between(progress, end)
        names = ("key_1", "key_2")[: len(self._keys)]
        if self._postgres:
            written = [f"cast({key} as text) as {name}" for key, name in zip(self._keys, names, strict=True)]
        else:  # keys that the collation considers equal must stay different
            written = [f"{key} collate binary as {name}" for key, name in zip(self._keys, names, strict=True)]
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
        log = _escaped(self._names.quoted(TABLE))
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
            return f"cast(to_jsonb({text}) #>> '{{}}' as {_escaped(column.sql_type)})"
        if isinstance(stored, str):
            values[name] = bytes.fromhex(stored)
        return f"cast(:{name} as text)" if storage == "text" else f":{name}"

    def _place(self, connection: sa.Connection, statement: str, values: dict[str, Any]) -> Place | None:
        row = connection.execute(sa.text(statement), values).first()
        return None if row is None else tuple(zip(row[::2], row[1::2], strict=True))

    @cached_property
    def _name(self) -> str:
        return _escaped(self._table.quoted)

    @cached_property
    def _keys(self) -> Sequence[str]:
        return [f"t.{_escaped(quote_identifier(column.name))}" for column in self._table.keys]

    @cached_property
    def _present(self) -> str:
        return " and ".join(f"{key} is not null" for key in self._keys)

    @cached_property
    def _encoded(self) -> str:
        """The key columns as a ``Place``: two values for each."""
        if self._postgres:
            return ", ".join(
                f"'text', encode(convert_to(cast({key} as text), getdatabaseencoding()), 'hex')" for key in self._keys
            )
        return ", ".join(
            f"typeof({key}), case when typeof({key}) in ('text', 'blob') then hex(cast({key} as blob)) else {key} end"
            for key in self._keys
        )

    def _require(self, connection: sa.Connection, progress: Progress) -> None:
        """Lock the stored progress, and raise ``BackfillTaken`` unless it is this one."""
        if self._stored(connection).get(self._table.kind) != progress:
            message = f"another command has continued, restarted or ended the backfill of {self._table.kind}"
            raise BackfillTaken(message)

    def _stored(self, connection: sa.Connection) -> dict[str, Progress]:
        """Return the unfinished backfills by kind, locked until the end of the transaction."""
        text = connection.execute(sa.select(self._log.state.c.backfill).with_for_update()).scalar_one_or_none()
        return {kind: _parsed(found) for kind, found in json.loads(text or "{}").items()}

    def _store(self, connection: sa.Connection, progress: Progress | None) -> None:
        """Store the progress of this table; None removes it. The caller must hold the lock of ``_stored``."""
        stored = self._stored(connection)
        stored.pop(self._table.kind, None)
        if progress is not None:
            stored[self._table.kind] = progress
        text = json.dumps({kind: asdict(found) for kind, found in stored.items()}) if stored else None
        connection.execute(sa.update(self._log.state).values(backfill=text))


def _parsed(found: dict[str, Any]) -> Progress:
    places = {name: _as_place(found[name]) for name in ("after", "until")}
    rows, bounded = found["rows"], found["bounded"]
    return Progress(token=found["token"], keys_of=tuple(found["keys_of"]), rows=rows, bounded=bounded, **places)


def _as_place(found: list[list[Any]] | None) -> Place | None:
    return None if found is None else tuple((storage, value) for storage, value in found)


def waiting(connection: sa.Connection, names: Names) -> tuple[int, int | None]:
    """Return the approximate length of the change log and the number of its first row, which grows with recording."""
    seq = ChangeLog(names).rows.c.seq
    first, last = connection.execute(sa.select(sa.func.min(seq), sa.func.max(seq))).one()
    return (0, None) if first is None else (last - first + 1, first)


def _escaped(sql: str) -> str:
    """Escape colons, so that ``sa.text`` finds no parameters in this SQL."""
    return sql.replace(":", "\\:")
