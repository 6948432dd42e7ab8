"""One table's rows in the order in which they were changed: what ``updated_at`` capture reads again and again.

A page of rows comes after a place in that order. Of each row there are its moment, its key and a digest of its version:
on Postgres of the transaction that wrote it, on SQLite of all that is mapped. Refuses to know which rows were given
before.

A column that tells when a row was changed, as SQL: any of the three forms of time becomes microseconds since 1970.

The forms: a timestamp with or without zone, ISO text, epoch milliseconds. What is none (NULL, infinity, a text that is
no time, a year beyond 9999) is no moment, and the row is not seen. A time without zone counts as one of UTC: only the
order matters here, and ``slack_us`` is what a clock that is set back may cost.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Final

import sqlalchemy as sa
from attrs import field, frozen

from airy_trio.capture.mapping import Column, Key, Kind, Table
from airy_trio.capture.queries import TEXT_CHARS_MAX, Queries
from airy_trio.database import POSTGRES, quote_identifier

SECOND_US: Final = 1_000_000
SET_BACK_MAX_US: Final = 2 * 3600 * SECOND_US  # no zone sets its clocks back by more
AHEAD_MAX_US: Final = 60 * SECOND_US
ZONE_MAX_US: Final = 14 * 3600 * SECOND_US
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_S: Final = 86_400
_DIGITS_FROM_MS: Final = 1_000_000_000_000  # 2001: from here on epoch milliseconds have the same number of digits
_DIGITS_TURN_MS: Final = 1_900_000_000_000  # some time before they begin with another digit
_END: Final = "10000-01-01"
_MS_MIN, _MS_MAX = -62_135_596_800_000, 253_402_300_800_000  # the years 1 to 9999

_DATE = (
    r"((?!0000)[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
    r"02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26]|0[48])00)-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?"
_ISO = rf"^{_DATE}([T ]{_TIME}( ?(Z|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?))?)?$"
"""What Postgres casts to a time without fail, so that one impossible text never fails a batch."""


@frozen
class Clock:
    """The column ``t.NAME`` of a table's rows.

    ``value`` orders rows and is compared with ``bound(parameter)``, whose parameter is microseconds; ``moment`` is the
    value in microseconds; ``is_moment`` is the condition that there is one. ``zoneless``: of a zone that may be set
    back. ``near`` is true for all rows from a moment on and may be for others: a condition that an index serves, over
    the parameters that ``nearness`` gives.
    """

    value: str
    moment: str
    is_moment: str
    zoneless: bool
    _bound: str = field(alias="bound")
    near: str = "true"

    def bound(self, parameter: str) -> str:
        """A moment in microseconds, a parameter's, as ``value`` is compared with it."""
        return self._bound.format(parameter)

    def nearness(self, moment_us: int) -> Mapping[str, str | int]:
        """The parameters of ``near`` for the rows from a moment on."""
        if self.near == "true":
            return {}
        milliseconds = moment_us // 1000
        day = _EPOCH + timedelta(seconds=moment_us // SECOND_US - _DAY_S)  # an offset may make it the day before
        end = (
            "2" if 0 < milliseconds < _DIGITS_TURN_MS else ":"
        )  # what follows the digits of these years, or all digits
        return {
            "near_day": day.date().isoformat(),
            "near_ms": milliseconds,
            "near_digits": str(milliseconds) if milliseconds > _DIGITS_FROM_MS else "0",
            "near_digits_end": end,
        }

    @property
    def slack_us(self) -> int:
        """How far beyond the overlap changes may lie behind newer ones."""
        return SET_BACK_MAX_US if self.zoneless else 0

    @property
    def ahead_max_us(self) -> int:
        """How far ahead of the database's own clock a moment may be and still count as now."""
        return AHEAD_MAX_US + (ZONE_MAX_US if self.zoneless else 0)


def clock(dialect: str, table: Table) -> Clock:
    """The clock of a table that has a watermark."""
    if table.watermark is None:
        raise AssertionError(table.kind)
    name = "t." + quote_identifier(table.watermark.name).replace(":", "\\:")
    local = table.time_zone != "UTC"
    if dialect != POSTGRES:
        return _sqlite(name, local=local)
    match table.watermark.type:
        case "timestamptz":
            return _timestamp(name, "timestamptz", zoneless=False)
        case "timestamp":
            if table.watermark.sql_type == "date":  # some dates are too large for the cast
                name = f"cast(least({name}, date '{_END}') as timestamp)"
            return _timestamp(name, "timestamp", zoneless=local)
        case "integer":
            return Clock(
                value=name,
                moment=f"cast({name} as bigint) * 1000",
                is_moment=f"{name} between {_MS_MIN} and {_MS_MAX - 1}",
                zoneless=False,
                bound="cast(floor(cast({} as numeric) / 1000) as bigint)",
            )
        case "float" | "numeric":
            value = f"floor(cast({name} as numeric) * 1000)"
            is_moment = f"{name} >= {_MS_MIN} and {name} < {_MS_MAX}"
            moment = f"cast({value} as bigint)"
            return Clock(value=value, moment=moment, is_moment=is_moment, zoneless=False, bound="cast({} as numeric)")
        case _:
            return _timestamp(_read(f"cast({name} as text)"), "timestamptz", zoneless=local)


def _timestamp(value: str, type_: str, *, zoneless: bool) -> Clock:
    return Clock(
        value=value,
        moment=f"cast(extract(epoch from {value}) * {SECOND_US} as bigint)",
        is_moment=f"{value} >= {type_} '0001-01-01' and {value} < {type_} '{_END}'",
        zoneless=zoneless,
        bound=f"({type_} 'epoch' + cast({{}} as float8) * interval '1 microsecond')",
    )


def _read(text: str) -> str:
    """A text as a time, without fail; epoch milliseconds may be text too."""
    iso = _ISO.replace(":", "\\:")
    return (
        f"(case when {text} ~ '{iso}' then cast({text} as timestamptz) "
        f"when {text} ~ '^[0-9]{{1,15}}([.][0-9]*)?$' then to_timestamp(cast({text} as float8) / 1000) end)"
    )


def _sqlite(name: str, *, local: bool) -> Clock:
    iso = f"{name} glob '[0-9][0-9][0-9][0-9]-*'"
    digits = f"{name} <> '' and {name} not glob '*[^0-9.]*'"
    milliseconds = (
        f"case when typeof({name}) in ('integer', 'real') then {name} "
        f"when typeof({name}) <> 'text' then null "
        f"when {iso} then round((julianday({name}) - 2440587.5) * 86400000.0) "
        f"when {digits} then cast({name} as real) end"
    )
    moment = f"(cast({milliseconds} as integer) * 1000)"
    is_moment = f"{moment} >= {_MS_MIN * 1000} and {moment} < {_MS_MAX * 1000}"
    near = (
        f"({name} >= :near_day or ({name} >= :near_ms and {name} < '') or "
        f"({name} >= :near_digits and {name} < :near_digits_end))"
    )
    return Clock(value=moment, moment=moment, is_moment=is_moment, zoneless=local, bound="{}", near=near)


PAGE_ROWS: Final = 500
Place = tuple[int, str]
"""A moment in microseconds, and a text that orders the rows of the same moment."""


@frozen
class RowVersion:
    """A version of a row: where it lies in the order of changes, which object it belongs to, and its digest."""

    place: Place
    kind: Kind
    key: Key
    digest: int


class TableScan:
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
    ) -> list[RowVersion]:
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

    def _version(self, row: tuple[Any, ...]) -> RowVersion:
        moment, order, *values = row
        keys = values[: len(self._table.keys)]
        digest = blake2b(repr((moment, order, values)).encode(), digest_size=8).digest()
        return RowVersion(
            place=(moment, order),
            kind=self._table.kind,
            key=(keys[0], keys[1] if len(keys) > 1 else None),
            digest=int.from_bytes(digest),
        )


def versions(
    sweep: TableScan, connection: sa.Connection, lower_us: int | None, after: Place | None, upto_us: int | None
) -> Iterator[RowVersion]:
    """All rows in order, page by page, in the connection's snapshot."""
    while True:
        page = sweep.page(connection, lower_us, after, upto_us)
        yield from page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].place
