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
from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import psycopg
import sqlalchemy as sa
import trio
from attrs import astuple, evolve, field, frozen
from sqlalchemy.exc import DBAPIError

from airy_trio.capture.change_log import parsed_point
from airy_trio.capture.feed import Batch, Consumer, Kind, ResumePointLost
from airy_trio.capture.mapping import KINDS, Tables
from airy_trio.capture.objects import LOCK_TIMEOUT, Change, InspectedFeed
from airy_trio.capture.scans import (
    BEGIN_PLACE,
    END_PLACE,
    MIN_US,
    SECOND_US,
    SET_BACK_MAX_US,
    Place,
    RowVersion,
    TableScan,
)
from airy_trio.database import POSTGRES, DedicatedConnection
from airy_trio.database.sqlite import FileVersion, FileVersions

POLL_S: Final = 0.1
POLL_MAX_S: Final = 0.4  # less than the idle time-out of a recorder's connection, which must be used to be kept
REST_SHARE: Final = 2.0  # the pause between two reads, as a multiple of the time that a read takes

_DATABASE: Final = sa.text(
    "select cast(system_identifier as text), cast(pg_database.oid as text) "
    "from pg_control_system(), pg_database where datname = current_database()"
)
_NOW: Final = sa.text("select cast(extract(epoch from now()) * 1000000 as bigint)")


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
        return MIN_US if self.newest_us is None else self.newest_us - reach_us


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


def identified(text: str, identity: Identity, dialect: str) -> str | None:
    """Return a resume point with the source of ``identity``, which points of older versions do not have.

    None: it is of another database, or of another capture mode. A point of a file without a source is
    accepted whatever its history: a replaced file has another inode. Raises ``ResumePointTooNew``.
    """
    try:
        point = Watermarks.parse(text)
    except ResumePointLost:
        return None
    if point.identity.source:
        return text if point.identity.source == identity.source else None
    if dialect == POSTGRES and point.identity.history != identity.history:
        return None
    return str(evolve(point, identity=evolve(point.identity, source=identity.source)))


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
        self._pause_s = POLL_S
        self._life = secrets.token_hex(8)
        self._serial = 0  # of the newest resume point
        # For each table the versions returned within the overlap, each with its serial number and its place.
        self._returned: dict[Kind, dict[int, tuple[int, Place]]] = {kind: {} for kind in KINDS}

    async def wait(self) -> None:
        """See ``ChangeFeed.wait``. Return after a pause. For a file, wait for a commit as well.

        The pause grows with the time that a read takes.
        """
        await trio.sleep(self._pause_s)
        if self._file is not None:
            await self._file.wait()

    async def origin(self) -> str:
        """See ``ChangeFeed.origin``: now, or for some tables the beginning. Other rows that exist are not sent."""
        version = await self._file.ask() if self._file else None

        def begin(connection: sa.Connection) -> str:
            identity = Identity.of(connection, version)
            nothing = Watermarks(identity=identity, life=self._life, serial=self._serial, marks={})
            return self._read(connection, nothing, 0, version).resume_point

        return await self._reading.run(begin)

    async def restart(self) -> str:
        return await self.origin()

    async def identified(self, point: str) -> str | None:
        return identified(point, await self._reading.run(Identity.of), self._dialect)

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
        self._scans = {kind: TableScan(self._dialect, table, self._text_chars_max) for kind, table in tables.items()}

    async def _read_once(self, after: str, limit: int) -> Batch:
        point = Watermarks.parse(after)
        # The version is read before the rows. A commit in between then changes the version, which ends the next wait.
        version = await self._file.ask() if self._file else None
        begun_at = trio.current_time()
        batch, retries = None, 0
        while batch is None:
            read = partial(self._try_read, point=point, limit=limit, file=version, retries=retries)
            batch, retries = await self._reading.run(read), retries + 1
        self._pause_s = min(max(POLL_S, REST_SHARE * (trio.current_time() - begun_at)), POLL_MAX_S)
        return batch

    def _try_read(
        self, connection: sa.Connection, point: Watermarks, limit: int, file: FileVersion | None, retries: int
    ) -> Batch | None:
        """Read, or return None if the application has one of the tables locked (see ``LOCK_TIMEOUT``).

        ``retries``: how often that was the case. Each attempt begins with another table.
        """
        try:
            return self._read(connection, point, limit, file, retries)
        except (DBAPIError, psycopg.Error) as error:
            if not isinstance(getattr(error, "orig", error), psycopg.errors.LockNotAvailable):
                raise
            connection.rollback()
            return None

    def _read(
        self, connection: sa.Connection, point: Watermarks, limit: int, file: FileVersion | None, retries: int = 0
    ) -> Batch:
        identity = Identity.of(connection, file)
        # A file that was moved is the same file, and points of older versions have no source.
        is_same = file is not None or point.identity.source in {"", identity.source}
        if point.identity.history != identity.history or not is_same:
            raise ResumePointLost("the database is another one, or another file, than the one that was recorded")
        self._trim_returned(point)
        now_us = time.time_ns() // 1000 if file is not None else connection.execute(_NOW).scalar_one()
        poll = _Poll(connection=connection, limit=limit, now_us=now_us)
        kinds = list(self._scans)
        first = (point.serial + retries) % len(kinds)  # each starts with another, so that none starves the others
        marks: dict[Kind, Mark] = {}
        for kind in kinds[first:] + kinds[:first]:
            # The first table is waited for as long as it takes, while no other one is locked.
            if file is None and len(marks) == 1:
                connection.exec_driver_sql(LOCK_TIMEOUT)
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
        else:
            for kind in self._scans.keys() & point.marks.keys():
                oldest_us = point.marks[kind].oldest_us(self._reach_us(kind))
                self._returned[kind] = {
                    id_: (serial, place)
                    for id_, (serial, place) in self._returned[kind].items()
                    if serial <= point.serial and place[0] >= oldest_us
                }

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
        self._forget_gone(kind, met, mark.after, END_PLACE if mark.upto_us is None else place)
        return Mark(self._watermark(poll, kind, mark.newest_us, newest_us, is_local=is_local))

    def _forget_gone(self, kind: Kind, met: Container[int], after: Place | None, upto: Place | None) -> None:
        """Forget the returned versions after a place, up to another, that a scan of these places has not met.

        On SQLite a row may become equal to such a version again, within one tick of the application's clock, and must
        then be returned again.
        """
        first, last = after or BEGIN_PLACE, upto or BEGIN_PLACE
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
