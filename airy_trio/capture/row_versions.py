"""One table's rows in the order in which they were changed: what ``updated_at`` capture reads again and again.

A page of rows comes after a place in that order. Of each row there are its moment, its key and a digest of its version:
on Postgres of the transaction that wrote it, on SQLite of all that is mapped. Refuses to know which rows were given
before.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final

import sqlalchemy as sa
from attrs import frozen

from airy_trio.changes.clocks import Clock, clock
from airy_trio.changes.queries import TEXT_CHARS_MAX, Queries
from airy_trio.changes.tables import Column, Key, Kind, Table
from airy_trio.database import POSTGRES

PAGE_ROWS: Final = 500
Place = tuple[int, str]
"""A moment in microseconds, and a text that orders the rows of the same moment."""


@frozen
class Version:
    """A version of a row: where it lies in the order of changes, which object it belongs to, and its digest."""

    place: Place
    kind: Kind
    key: Key
    digest: int


class Sweep:
    """The statements for one table that has a watermark."""

    def __init__(self, dialect: str, table: Table, text_chars_max: int = TEXT_CHARS_MAX) -> None:
        self._postgres = dialect == POSTGRES
        self._table = table
        self.clock: Clock = clock(dialect, table)
        queries = Queries(dialect, table, text_chars_max)
        identity = self._identity()
        keys = [f"{queries.text(column)} as key_{number}" for number, column in enumerate(table.keys, start=1)]
        if self._postgres:
            version = ["cast(t.xmin as text) as version"]
        else:
            version = [queries.selected(name, column) for name, column in table.columns.items()]
        self._order = " || ' ' || ".join(self._hex(queries.text(column)) for column in identity)
        self._columns = ", ".join([f"{self.clock.moment} as moment", f"{self._order} as airy_order", *keys, *version])
        self._from = f"from {queries.name} t where {self.clock.is_moment}"

    def page(
        self, connection: sa.Connection, lower_us: int | None, after: Place | None, upto_us: int | None
    ) -> list[Version]:
        """At most ``PAGE_ROWS`` rows from a moment on, after a place, up to a moment; None: no such bound."""
        conditions, arguments = self._conditions(lower_us, after, upto_us)
        statement = sa.text(
            f"select {self._columns} {self._from}{conditions} "
            f"order by {self.clock.value}, {self._collated(self._order)} limit {PAGE_ROWS}"
        )
        return [self._version(tuple(row)) for row in connection.execute(statement, arguments)]

    def try_out(self, connection: sa.Connection) -> None:
        """Run the statement for no row at all: what it raises, reading this table would raise."""
        connection.execute(sa.text(f"select {self._columns} {self._from} and 1 = 0"))

    def newest_us(self, connection: sa.Connection, lower_us: int | None) -> int | None:
        """The newest moment of all rows from a moment on; None where there are none."""
        conditions, arguments = self._conditions(lower_us, None, None)
        statement = sa.text(
            f"select {self.clock.moment} {self._from}{conditions} order by {self.clock.value} desc limit 1"
        )
        found: int | None = connection.execute(statement, arguments).scalar()
        return found

    def _identity(self) -> tuple[Column, ...]:
        """The columns that tell rows apart; what is alike in them is of one object."""
        column = self._table.columns.get("key") if self._table.kind == "metadata" else None
        return self._table.keys if column is None else (*self._table.keys, column)

    def _conditions(
        self, lower_us: int | None, after: Place | None, upto_us: int | None
    ) -> tuple[str, dict[str, str | int]]:
        sql, arguments = "", dict[str, str | int]()
        if after is not None:
            lower_us = after[0]
        if lower_us is not None:
            sql += f" and {self.clock.near} and {self.clock.value} >= {self.clock.bound(':lower_us')}"
            arguments |= {"lower_us": lower_us, **self.clock.nearness(lower_us)}
        if after is not None:
            beyond = f"{self._collated(self._order)} > :after_order"
            sql += f" and ({self.clock.value} > {self.clock.bound(':lower_us')} or {beyond})"
            arguments |= {"after_order": after[1]}
        if upto_us is not None:
            sql += f" and {self.clock.value} <= {self.clock.bound(':upto_us')}"
            arguments |= {"upto_us": upto_us}
        return sql, arguments

    def _hex(self, text: str) -> str:
        """A text of any encoding as digits, so that it can be a parameter again."""
        if self._postgres:
            return f"encode(convert_to(coalesce({text}, ''), getdatabaseencoding()), 'hex')"
        return f"hex(coalesce({text}, ''))"

    def _collated(self, order: str) -> str:
        return f'({order}) collate "C"' if self._postgres else f"({order})"

    def _version(self, row: tuple[Any, ...]) -> Version:
        moment, order, *values = row
        keys = values[: len(self._table.keys)]
        digest = blake2b(repr((moment, order, values)).encode(), digest_size=8).digest()
        return Version(
            place=(moment, order),
            kind=self._table.kind,
            key=(keys[0], keys[1] if len(keys) > 1 else None),
            digest=int.from_bytes(digest),
        )


def versions(
    sweep: Sweep, connection: sa.Connection, lower_us: int | None, after: Place | None, upto_us: int | None
) -> Iterator[Version]:
    """All rows in order, page by page, in the connection's snapshot."""
    while True:
        page = sweep.page(connection, lower_us, after, upto_us)
        yield from page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].place
