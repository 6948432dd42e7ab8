"""A column that tells when a row was changed, as SQL: any of the three forms of time becomes microseconds since 1970.

The forms: a timestamp with or without zone, ISO text, epoch milliseconds. What is none (NULL, infinity, a text that is
no time, a year beyond 9999) is no moment, and the row is not seen. A time without zone counts as one of UTC: only the
order matters here, and ``slack_us`` is what a clock that is set back may cost.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import field, frozen

from airy_trio.changes.tables import Table
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
