"""The change feed of a database that airy-trio must not write to: poll for rows with a new ``updated_at``.

Without triggers there is no change log, only a column that holds the time of each row's last change. Reading the rows
whose time is greater than the newest time seen so far (the *watermark*) is not enough, because transactions do not
commit in the order of these times: a transaction sets the time when it writes, or when it begins, and its rows become
visible when it commits. Measured with six writers and transactions open for up to 0.5 s, that rule lost 51 of 185
changes; reaching back by 1 s before the watermark lost none.

Therefore each scan of a table starts ``overlap_s`` before the watermark. As long as no transaction stays open longer
than that, a scan meets every row. It also meets rows that it has already returned, so the feed remembers in memory
which row versions it has returned within the overlap, and skips them. A version is identified by its time, its key, and
on Postgres the transaction that wrote it (``xmin``), on SQLite all mapped values. The time alone would not do: a row
can change twice within one microsecond, or millisecond.

A scan that is cut at the limit stores its place (time and key) and an upper bound, which is the newest time in the
table when it was cut. The next read continues at that place up to that bound, and only then the watermark moves, to the
bound. The scan after that starts an overlap before the bound; so rows that were committed behind the place while a long
backlog was read are found.

The resume point holds the watermarks and places, but not the versions. After a restart, or when another node takes
over, the rows of the overlap are therefore returned again. That is harmless, because an event carries the state of an
object. Each resume point has a serial number, and each remembered version the number of the point that first covers it.
If the recorder reads again after an earlier point, because it could not store what followed, the versions with a higher
number are forgotten. If it reads after a point of another feed (another ``life``), all of them are.

This capture is best effort; ``feed.CANNOT_SEE`` lists what it misses, and the server logs it at its start.
"""
# ruff: noqa: D102 - the port documents each method

import json
import secrets
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa
import trio
from attrs import astuple, evolve, field, frozen

from airy_trio.capture.change_log import parsed_point
from airy_trio.capture.feed import Batch, Consumer, Kind, ResumePointLost
from airy_trio.capture.mapping import KINDS, Key, Table, Tables
from airy_trio.capture.objects import Change, InspectedFeed
from airy_trio.capture.queries import Queries
from airy_trio.database import POSTGRES, DedicatedConnection, escape_colons, quote_identifier
from airy_trio.database.sqlite import FileVersion, FileVersions

SECOND_US: Final = 1_000_000
POLL_S: Final = 0.1
POLL_MAX_S: Final = 0.4  # less than the idle time-out of a recorder's connection, which must be used to be kept
REST_SHARE: Final = 2.0  # the pause between two reads, as a multiple of the time that a read takes
PAGE_ROWS: Final = 500
PAGE_ROWS_MAX: Final = 32_000  # about 10 MB
SET_BACK_MAX_US: Final = 2 * 3600 * SECOND_US  # no time zone sets its clocks back by more

_DATABASE: Final = sa.text(
    "select cast(system_identifier as text), cast(pg_database.oid as text) "
    "from pg_control_system(), pg_database where datname = current_database()"
)
_NOW: Final = sa.text("select cast(extract(epoch from now()) * 1000000 as bigint)")

Place = tuple[int, str]
"""A time in microseconds since 1970, and a text that orders the rows of the same time."""


@frozen
class Identity:
    """Which database this is, by properties that it has anyway, since no identity can be written into it.

    ``source`` names the database to which an event log belongs: the cluster and the number of the database in it, which
    a standby shares, or the resolved path of a file. ``history`` is the cluster, or the inode of the file: another file
    at the same path is another history of the same source.
    """

    history: str
    source: str

    @classmethod
    def of(cls, connection: sa.Connection, file: FileVersion | None = None) -> Self:
        """Query it. ``file``: the version of an SQLite file; without it ``history`` is "" for a file."""
        if connection.dialect.name == POSTGRES:
            cluster, number = connection.execute(_DATABASE).one()
            return cls(cluster, f"{cluster}.{number}")
        path = Path(connection.exec_driver_sql("PRAGMA database_list").one()[2])
        return cls("" if file is None else str(file.file[1]), str(path.resolve()))


@frozen
class Mark:
    """How far one table has been read, in microseconds.

    ``newest_us``: the watermark, None if the table was empty. ``after`` and ``upto_us``: the place that a scan has
    reached which was cut, and the time up to which it goes.
    """

    newest_us: int | None
    after: Place | None = None
    upto_us: int | None = None

    @classmethod
    def of(cls, newest_us: int | None, after: Sequence[Any] | None, upto_us: int | None) -> Self:
        """Return the mark that was stored as these values."""
        return cls(newest_us, None if after is None else (int(after[0]), str(after[1])), upto_us)

    def oldest_us(self, reach_us: int) -> int:
        """The oldest time that any later scan can meet, if scans reach back so far."""
        if self.after is not None and self.upto_us is not None:
            return min(self.after[0], self.upto_us - reach_us)
        return _MIN_US if self.newest_us is None else self.newest_us - reach_us


@frozen(kw_only=True)
class Watermarks:
    """A resume point: number ``serial`` of the feed ``life``. A point of an older version has the source ""."""

    identity: Identity
    life: str
    serial: int
    marks: Mapping[Kind, Mark]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote. Points of older versions also have digests of row versions, which are not used.

        Raises ``ResumePointLost`` if another capture mode wrote it, and ``ResumePointTooNew``.
        """
        found: Any = parsed_point(text)
        try:
            marks = {kind: Mark.of(*found["marks"][kind]) for kind in KINDS if kind in found["marks"]}
            identity = Identity(found["identity"], found.get("source", ""))
            return cls(identity=identity, life=found["life"], serial=int(found["serial"]), marks=marks)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise ResumePointLost('what was recorded is of another capture mode than "updated_at"') from None

    def __str__(self) -> str:
        found = {
            "identity": self.identity.history,
            "source": self.identity.source,
            "life": self.life,
            "serial": self.serial,
            "marks": {kind: astuple(mark) for kind, mark in self.marks.items()},
        }
        return json.dumps(found, separators=(",", ":"))


def is_foreign(text: str, identity: Identity, dialect: str) -> bool:
    """Whether a resume point is of another database than ``identity``, or of another capture mode.

    A point of an older version has no source. If it is of a file, nothing can be concluded from its history, because a
    replaced file has another inode. Raises ``ResumePointTooNew``.
    """
    try:
        recorded = Watermarks.parse(text).identity
    except ResumePointLost:
        return True
    if not recorded.source:
        return dialect == POSTGRES and recorded.history != identity.history
    return recorded.source != identity.source


@frozen(kw_only=True)
class _Poll:
    """One read of all tables, in one snapshot: the row versions found so far, and the database's time."""

    connection: sa.Connection
    limit: int
    now_us: int
    found: list["RowVersion"] = field(factory=list)


class UpdatedAtFeed(InspectedFeed):
    """``ChangeFeed`` over one connection that only reads; on Postgres in REPEATABLE READ.

    If the database was replaced since the resume point (another SQLite file at the path, another database at the
    address), the changes in between are unknown: ``read`` raises ``ResumePointLost``.

    ``from_the_beginning``: the tables whose existing rows are returned first, for the current state of their objects.
    """

    consumed = False

    def __init__(  # noqa: PLR0913 - each is a decision of the settings
        self,
        reading: DedicatedConnection,
        dialect: str,
        tables: Tables,
        *,
        overlap_s: float,
        text_chars_max: int,
        from_the_beginning: frozenset[Kind] = frozenset(),
    ) -> None:
        super().__init__(reading, dialect, tables, text_chars_max)
        self._from_the_beginning = from_the_beginning
        self._overlap_us = round(overlap_s * SECOND_US)
        self._file = None if dialect == POSTGRES else FileVersions(reading, self.aclose)
        self._file_version: FileVersion | None = None
        self._exhausted: tuple[FileVersion, str] | None = None  # version and point of the last read that found nothing
        self._pause_s = POLL_S
        self._life = secrets.token_hex(8)
        self._serial = 0  # of the newest resume point
        # For each table the versions returned within the overlap, each with its serial number and its place.
        self._returned: dict[Kind, dict[int, tuple[int, Place]]] = {kind: {} for kind in KINDS}
        self._trimmed_for = 0  # the serial number of the point for which ``_returned`` was trimmed last

    async def wait(self) -> None:
        """See ``ChangeFeed.wait``. Return after a pause, and for a file once there was a commit.

        The pause grows with the time that a read takes. An unchanged file delays the return by ``POLL_MAX_S`` at most.
        """
        await trio.sleep(self._pause_s)
        if self._file is not None:
            with trio.move_on_after(POLL_MAX_S):
                await self._file.wait_for_other(self._file_version)

    async def origin(self) -> str:
        """See ``ChangeFeed.origin``: now, or for some tables the beginning. Other rows that exist are not sent."""
        version = self._file_version = await self._file.ask() if self._file else None

        def begin(connection: sa.Connection) -> str:
            identity = Identity.of(connection, version)
            nothing = Watermarks(identity=identity, life=self._life, serial=self._serial, marks={})
            return self._read(connection, nothing, 0, version).resume_point

        return await self._reading.run(begin)

    async def restart(self) -> str:
        return await self.origin()

    async def is_foreign(self, point: str) -> bool:
        return is_foreign(point, await self._reading.run(Identity.of), self._dialect)

    async def identified(self, point: str) -> str:
        found = Watermarks.parse(point)
        if found.identity.source:
            return point
        ours = await self._reading.run(Identity.of)
        return str(evolve(found, identity=evolve(found.identity, source=ours.source)))

    async def seal(self, after: str, upto: str) -> str:  # noqa: ARG002 - nothing is written into the database
        return upto

    async def settle(self, point: str) -> None:
        """See ``ChangeFeed.settle``: nothing to do."""

    async def trim(self, upto: str, limit: int) -> int:  # noqa: ARG002 - there is no change log
        await trio.lowlevel.checkpoint()
        return 0

    async def consumer(self) -> Consumer | None:
        await trio.lowlevel.checkpoint()
        return None

    async def adopt(self, consumer: Consumer) -> None:  # noqa: ARG002 - the same
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        await self._reading.aclose()

    def use(self, tables: Tables) -> None:
        """Read these tables from now on."""
        super().use(tables)
        self._exhausted = None
        self._scans = {kind: TableScan(self._dialect, table, self._text_chars_max) for kind, table in tables.items()}

    async def _read_once(self, after: str, limit: int) -> Batch:
        point = Watermarks.parse(after)
        # The version is read before the rows. A commit in between then changes the version, which ends the next wait.
        version = self._file_version = await self._file.ask() if self._file else None
        # Otherwise an idle server would be busy after a bulk change, because each scan reads all of its rows again.
        if version is not None and self._exhausted == (version, after):
            return Batch(objects=(), resume_point=after, changes=0, more=False)
        begun_at = trio.current_time()
        batch = await self._reading.run(lambda connection: self._read(connection, point, limit, version))
        self._pause_s = min(max(POLL_S, REST_SHARE * (trio.current_time() - begun_at)), POLL_MAX_S)
        self._exhausted = None if version is None or batch.resume_point != after else (version, after)
        return batch

    def _read(self, connection: sa.Connection, point: Watermarks, limit: int, file: FileVersion | None) -> Batch:
        identity = Identity.of(connection, file)
        # A file that was moved is the same file, and points of older versions have no source.
        is_same = file is not None or point.identity.source in {"", identity.source}
        if point.identity.history != identity.history or not is_same:
            raise ResumePointLost("the database is another one, or another file, than the one that was recorded")
        self._trim_returned(point)
        now_us = time.time_ns() // 1000 if file is not None else connection.execute(_NOW).scalar_one()
        poll = _Poll(connection=connection, limit=limit, now_us=now_us)
        kinds = list(self._scans)
        first = point.serial % len(kinds)  # each read starts with another table, so that none starves the others
        marks: dict[Kind, Mark] = {}
        for kind in kinds[first:] + kinds[:first]:
            mark = point.marks.get(kind)
            # A table without a mark was mapped since that point: it begins now.
            marks[kind] = self._scan(poll, kind, mark) if mark is not None else self._begin(poll, kind)
        if not poll.found and marks == point.marks:
            return Batch(objects=(), resume_point=str(point), changes=0, more=False)
        found = sorted(poll.found, key=lambda version: version.place)
        objects = self._objects.read(connection, (Change(v.kind, "U", v.key, (None, None)) for v in found))
        # Nothing can fail from here on, so a version is remembered only if its batch is returned.
        self._serial += 1
        for version in found:
            self._returned[version.kind][version.id] = self._serial, version.place
        # The last read of a cut scan ends at the bound of that scan. Newer rows have not been read yet, so there may be
        # more.
        return Batch(
            objects=objects,
            resume_point=str(Watermarks(identity=identity, life=self._life, serial=self._serial, marks=marks)),
            changes=len(found),
            more=len(found) == limit or any(mark.upto_us is not None for mark in point.marks.values()),
        )

    def _trim_returned(self, point: Watermarks) -> None:
        """Forget the versions that were returned after this point, and those that no scan can meet any more."""
        if point.life != self._life:
            for versions in self._returned.values():
                versions.clear()
        elif not point.serial == self._serial == self._trimmed_for:  # else an idle poll, which has nothing to forget
            for kind in self._scans.keys() & point.marks.keys():
                oldest_us = point.marks[kind].oldest_us(self._reach_us(kind))
                self._returned[kind] = {
                    id_: (serial, place)
                    for id_, (serial, place) in self._returned[kind].items()
                    if serial <= point.serial and place[0] >= oldest_us
                }
            self._trimmed_for = point.serial

    def _scan(self, poll: _Poll, kind: Kind, mark: Mark) -> Mark:
        """Collect the new versions of one table, up to the limit; return its next mark."""
        scan, returned = self._scans[kind], self._returned[kind]
        lower_us = None if mark.newest_us is None else mark.newest_us - self._reach_us(kind)
        place, newest_us, is_local = mark.after, mark.upto_us, None
        met = set[int]()
        for version in scan.versions(poll.connection, lower_us, mark.after, mark.upto_us):
            if version.id not in returned:
                if len(poll.found) == poll.limit:
                    self._forget_gone(kind, met, mark.after, place)
                    if mark.upto_us is None:
                        mark = evolve(mark, upto_us=self._newest(poll, kind, lower_us))
                    return evolve(mark, after=place)
                poll.found.append(version)
            met.add(version.id)
            place, is_local = version.place, version.is_local
            newest_us = place[0] if mark.upto_us is None else mark.upto_us
        self._forget_gone(kind, met, mark.after, _END_PLACE if mark.upto_us is None else place)
        return Mark(self._watermark(poll, kind, mark.newest_us, newest_us, is_local=is_local))

    def _forget_gone(self, kind: Kind, met: Container[int], after: Place | None, upto: Place | None) -> None:
        """Forget the returned versions after a place, up to another, that a scan of these places has not met.

        On SQLite a row may become equal to such a version again, within one tick of the application's clock, and must
        then be returned again.
        """
        first, last = after or _BEGIN_PLACE, upto or _BEGIN_PLACE
        returned = self._returned[kind]
        for gone in [id_ for id_, (_, place) in returned.items() if first < place <= last and id_ not in met]:
            del returned[gone]

    def _begin(self, poll: _Poll, kind: Kind) -> Mark:
        """The mark of a table as it is now. Its rows count as returned, unless it is read from the beginning."""
        if kind in self._from_the_beginning:
            return Mark(None)
        newest_us = self._newest(poll, kind, None)
        if newest_us is not None:
            for version in self._scans[kind].versions(poll.connection, newest_us - self._reach_us(kind), None, None):
                # With the number of the point that this read returns.
                self._returned[kind][version.id] = self._serial + 1, version.place
        return Mark(newest_us)

    def _newest(self, poll: _Poll, kind: Kind, lower_us: int | None) -> int | None:
        """The newest time of all rows from a time on, but never ahead of the database's clock. None: no rows."""
        newest_us, is_local = self._scans[kind].newest(poll.connection, lower_us)
        return self._watermark(poll, kind, None, newest_us, is_local=is_local)

    def _watermark(
        self, poll: _Poll, kind: Kind, before_us: int | None, newest_us: int | None, *, is_local: bool | None
    ) -> int | None:
        """The watermark after a scan. ``is_local``: of the newest row that it has met, None if it has met none.

        It is never ahead of the database's clock: neither a row with a later time nor a clock that was set back may
        hide changes to come. Rows with a later time are met again by each scan.
        """
        moments_us = [moment_us for moment_us in (before_us, newest_us) if moment_us is not None]
        if not moments_us:
            return None
        return min(max(moments_us), self._scans[kind].clock.latest_us(poll.now_us, is_local=is_local))

    def _reach_us(self, kind: Kind) -> int:
        """How far before the watermark a scan starts."""
        clock = self._scans[kind].clock
        return self._overlap_us + clock.tick_us + (SET_BACK_MAX_US if clock.zone else 0)


@frozen
class RowVersion:
    """A version of a row: its place in the order of changes, its object, and a hash that identifies it.

    ``is_local``: its time is local, if the clock has a zone.
    """

    place: Place
    is_local: bool
    kind: Kind
    key: Key
    id: int


class TableScan:
    """The statements that read one table's rows in the order of their times."""

    def __init__(self, dialect: str, table: Table, text_chars_max: int) -> None:
        self._table = table
        self.clock: Clock = clock(dialect, table)
        queries = Queries(dialect, table, text_chars_max)
        keys = [queries.text(column) for column in table.keys]
        # Keys distinguish rows. Metadata rows that differ only in ``key`` belong to one object.
        apart = [*keys, queries.text(table.columns["key"])] if "key" in table.columns else keys
        if dialect == POSTGRES:
            order = [f"encode(convert_to(coalesce({text}, ''), getdatabaseencoding()), 'hex')" for text in apart]
            version = ["cast(t.xmin as text) as version"]
        else:
            order = [f"hex(coalesce({text}, ''))" for text in apart]
            version = [queries.selected(name, column) for name, column in table.columns.items()]
        # Text of any encoding as hexadecimal digits, so that it can be a parameter of the next statement.
        collated = ' collate "C"' if dialect == POSTGRES else ""
        self._order = "(" + " || ' ' || ".join(order) + f"){collated}"
        self._columns = ", ".join([self.clock.moment, self.clock.is_local, self._order, *keys, *version])
        self._from = f"from {queries.name} t where"

    def versions(
        self, connection: sa.Connection, lower_us: int | None, after: Place | None, upto_us: int | None
    ) -> Iterator[RowVersion]:
        """All rows from a time on, after a place, up to a time, in order, read in pages. None: no such bound."""
        # Each page is twice as large as the previous one, because a bulk change gives one time to many rows. No index
        # orders these, so each page sorts all that are left. With pages of 500, a scan of 60,000 such rows took 14 s on
        # SQLite and 4.5 s on Postgres; with these, 1.6 s and 0.7 s.
        page_rows = PAGE_ROWS
        while True:
            where, arguments = self._where(lower_us, after, upto_us)
            order = f"order by {self.clock.value}, {self._order} limit {page_rows}"
            statement = sa.text(f"select {self._columns} {self._from} {where} {order}")
            page = [self._version(tuple(row)) for row in connection.execute(statement, arguments)]
            yield from page
            if len(page) < page_rows:
                return
            after, page_rows = page[-1].place, min(2 * page_rows, PAGE_ROWS_MAX)

    def newest(self, connection: sa.Connection, lower_us: int | None) -> tuple[int | None, bool | None]:
        """The newest time of all rows from a time on, and whether it is local; None if there are none."""
        where, arguments = self._where(lower_us, None, None)
        order = f"order by {self.clock.value} desc limit 1"
        statement = sa.text(f"select {self.clock.moment}, {self.clock.is_local} {self._from} {where} {order}")
        found = connection.execute(statement, arguments).one_or_none()
        return (None, None) if found is None else (found[0], bool(found[1]))

    def _where(
        self, lower_us: int | None, after: Place | None, upto_us: int | None
    ) -> tuple[str, Mapping[str, str | int]]:
        value, bound = self.clock.value, self.clock.bound
        conditions, arguments = [self.clock.is_moment], dict[str, str | int]()
        if after is not None:
            # The lower bound becomes the time of the place. Together the two conditions select what is later in the
            # order of time and text.
            lower_us, arguments["after_order"] = after
            conditions.append(f"({value} > {bound.format(':lower_us')} or {self._order} > :after_order)")
        if lower_us is not None:
            arguments["lower_us"] = lower_us
            conditions.append(f"{value} >= {bound.format(':lower_us')}")
            if self.clock.near:
                conditions.append(self.clock.near)
                arguments |= _nearness(lower_us)
        if upto_us is not None:
            arguments["upto_us"] = upto_us
            conditions.append(f"{value} <= {bound.format(':upto_us')}")
        return " and ".join(conditions), arguments

    def _version(self, row: tuple[Any, ...]) -> RowVersion:
        moment_us, is_local, order, *values = row
        key = values[0], values[1] if len(self._table.keys) > 1 else None
        # Of the text, because equal hashes of different numbers are not rare: hash(-1) == hash(-2). The hash of a text
        # differs from process to process, but the ids are kept in memory only.
        place = (moment_us, order)
        return RowVersion(place, bool(is_local), self._table.kind, key, id=hash(repr(row)))


# The forms of time: a timestamp with or without time zone, ISO text, epoch milliseconds. A value that is none of them
# (NULL, infinity, other text, a year beyond 9999) is no time, and its row is not seen. A time without zone counts as
# UTC, whatever the mapping says, because only the order matters; what a clock that is set back costs is added to the
# overlap (``SET_BACK_MAX_US``).
_END: Final = "10000-01-01"
_MIN_US, _MAX_US = -62_135_596_800_000_000, 253_402_300_800_000_000  # the years 1 to 9999
_BEGIN_PLACE, _END_PLACE = (_MIN_US - 1, ""), (_MAX_US, "")
"""Before and after the places of all rows."""
_DAY_US: Final = 86_400 * SECOND_US
_DIGITS_FROM_MS: Final = 1_000_000_000_000  # 2001: from then on epoch milliseconds have 13 digits, the first of them 1
_DIGITS_UP_TO_MS: Final = 1_900_000_000_000  # before the first digit becomes 2, in 2033
_DATE = (
    r"((?!0000)[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
    r"02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26]|0[48])00)-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?"
_ISO = rf"^{_DATE}([T ]{_TIME}( ?(Z|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?))?)?$"
"""Text that Postgres can cast to a time. The cast of any other text would make the whole read fail."""


@frozen
class Clock:
    """The watermark column of a table ``t``, in SQL.

    ``value`` orders the rows, and is compared with ``bound`` of a number of microseconds. ``moment`` is the same time
    in microseconds. ``near`` is a condition that an index serves, with the parameters of ``_nearness``; it holds for
    all rows from a time on, and may hold for others. ``zone``: times may be local to this zone, which may set its
    clocks back; None: all are UTC. ``is_local`` is the condition that a row's time is local: text may have an offset,
    and a number is UTC. ``tick_us``: how much earlier than its change a time may be, if it is only a date.
    """

    value: str
    moment: str
    bound: str
    zone: tzinfo | None = None
    near: str = ""
    is_local: str = "true"
    tick_us: int = 0

    @property
    def is_moment(self) -> str:
        """The condition that a row has a time."""
        return f"{self.value} >= {self.bound.format(_MIN_US)} and {self.value} < {self.bound.format(_MAX_US)}"

    def latest_us(self, now_us: int, *, is_local: bool | None) -> int:
        """The latest watermark at a time of the database. A scan that starts there meets rows of its overlap.

        ``is_local``: whether the newest row's time is, and so those of the column; if that is not known, the later of
        both, because the earlier one may be hours back.
        """
        if self.zone is None or is_local is False:
            return now_us
        offset = datetime.fromtimestamp(now_us / SECOND_US, self.zone).utcoffset() or timedelta()
        local_us = now_us + offset // timedelta(microseconds=1) + SET_BACK_MAX_US
        return local_us if is_local else max(now_us, local_us)


def clock(dialect: str, table: Table) -> Clock:
    """The clock of a table that has a watermark."""
    if table.watermark is None:
        raise AssertionError(table.kind)
    name = "t." + escape_colons(quote_identifier(table.watermark.name))
    zone = None if table.time_zone == "UTC" else table.zone
    if dialect != POSTGRES:
        return _sqlite_clock(name, zone)
    match table.watermark.type:
        case "timestamptz":
            return _timestamp_clock(name, "timestamptz", None)
        case "timestamp":
            is_date = table.watermark.sql_type == "date"
            if is_date:  # some dates are too large for the cast
                name = f"cast(least({name}, date '{_END}') as timestamp)"
            return evolve(_timestamp_clock(name, "timestamp", zone), tick_us=_DAY_US if is_date else 0)
        case "integer":
            bound = "cast(floor(cast({} as numeric) / 1000) as bigint)"
            return Clock(value=name, moment=f"cast({name} as bigint) * 1000", bound=bound)
        case "float" | "numeric":
            value = f"floor(cast({name} as numeric) * 1000)"
            return Clock(value=value, moment=f"cast({value} as bigint)", bound="cast({} as numeric)")
        case _:
            text, iso = f"cast({name} as text)", escape_colons(_ISO)
            value = (
                f"(case when {text} ~ '{iso}' then cast({text} as timestamptz) "
                f"when {text} ~ '^[0-9]{{1,15}}([.][0-9]*)?$' then to_timestamp(cast({text} as float8) / 1000) end)"
            )
            return _timestamp_clock(value, "timestamptz", zone, is_local=f"{text} ~ '^[0-9]{{4}}-..-..[^-+Z]*$'")


def _timestamp_clock(value: str, type_: str, zone: tzinfo | None, is_local: str = "true") -> Clock:
    return Clock(
        value=value,
        moment=f"cast(extract(epoch from {value}) * {SECOND_US} as bigint)",
        bound=f"({type_} 'epoch' + cast({{}} as float8) * interval '1 microsecond')",
        zone=zone,
        is_local=is_local,
    )


def _sqlite_clock(name: str, zone: tzinfo | None) -> Clock:
    milliseconds = (
        f"case when typeof({name}) in ('integer', 'real') then {name} "
        f"when typeof({name}) <> 'text' then null "
        f"when {name} glob '[0-9][0-9][0-9][0-9]-*' then round((julianday({name}) - 2440587.5) * 86400000.0) "
        f"when {name} <> '' and {name} not glob '*[^0-9.]*' then cast({name} as real) end"
    )
    value = f"(cast({milliseconds} as integer) * 1000)"
    # SQLite orders numbers before text, so each form of time is a range of the column of its own.
    near = (
        f"({name} >= :near_day or ({name} >= :near_ms and {name} < '') or "
        f"({name} >= :near_digits and {name} < :near_digits_end))"
    )
    is_local = f"({name} glob '[0-9][0-9][0-9][0-9]-*' and substr({name}, 11) not glob '*[-+Zz]*')"
    return Clock(value=value, moment=value, bound="{}", zone=zone, near=near, is_local=is_local)


def _nearness(moment_us: int) -> Mapping[str, str | int]:
    """The parameters of ``Clock.near`` for the rows from a time on."""
    milliseconds = moment_us // 1000
    days = max(moment_us, _MIN_US + _DAY_US) // _DAY_US - 1  # the date may be that of a zone behind UTC
    return {
        "near_day": (date(1970, 1, 1) + timedelta(days)).isoformat(),
        "near_ms": milliseconds,
        "near_digits": str(milliseconds) if milliseconds > _DIGITS_FROM_MS else "0",
        # The text that follows all digits of this length, or all digits.
        "near_digits_end": "2" if 0 < milliseconds < _DIGITS_UP_TO_MS else ":",
    }
