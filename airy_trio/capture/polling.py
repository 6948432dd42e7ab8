"""The change feed of a database that must not be written to: rows whose ``updated_at`` is new, read again and again.

Each table is swept in the order of that column, from an overlap before the newest moment that was seen. A transaction
may commit later than one that wrote later: as long as it is open for less than the overlap, its rows are still to be
met. What was given is passed over by the digest of the row's version, not by its moment alone, so that a second change
of the same moment is none of those.

A sweep that is cut at the limit goes on from its last place, up to the newest moment that there was when it began: the
next one reaches back from there, so that a long backlog hides nobody who committed meanwhile. Best effort all the same;
``feed.CANNOT_SEE`` is said in the log.
"""

import secrets
from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa
import structlog
import trio
from attrs import evolve, field, frozen

from airy_trio.changes.clocks import SECOND_US
from airy_trio.changes.feed import OVERLAP_S, Batch, Consumer, ResumePointLost
from airy_trio.changes.identity import Identity, clock_us
from airy_trio.changes.inspection import inspect_again, read_current
from airy_trio.changes.objects import Change, Objects
from airy_trio.changes.queries import TEXT_CHARS_MAX
from airy_trio.changes.sweep import Sweep, Version, versions
from airy_trio.changes.tables import Kind, Tables
from airy_trio.changes.watermarks import Given, Mark, Watermarks, is_foreign
from airy_trio.database import POSTGRES, Session
from airy_trio.database.sqlite_version import Version as FileVersion
from airy_trio.database.sqlite_version import VersionOf

logger = structlog.get_logger(__name__)

POLL_S: Final = 0.1
POLL_MAX_S: Final = 0.4  # less than the idle time-out of a recorder's session, which must be used to be kept
FILE_POLL_S: Final = 0.005
REST_SHARE: Final = 2.0  # of the time that reading takes, spent between two reads


class UpdatedAtFeed:
    """``ChangeFeed`` over one connection that only reads; on Postgres one in REPEATABLE READ.

    If the database was replaced since the resume point (another SQLite file at the path, another database at the
    address), what changed is not known: ``ResumePointLost``.
    """

    consumed = False

    def __init__(
        self,
        reading: Session,
        dialect: str,
        tables: Tables,
        *,
        overlap_s: float = OVERLAP_S,
        text_chars_max: int = TEXT_CHARS_MAX,
    ) -> None:
        self._reading = reading
        self._dialect = dialect
        self._text_chars_max = text_chars_max
        self._use(tables)
        self._overlap_us = round(overlap_s * SECOND_US)
        self._file = None if dialect == POSTGRES else VersionOf(reading)
        self._seen: FileVersion | None = None
        self._given = Given()
        self._life = secrets.token_hex(8)
        self._serial = 0
        self._pause_s = POLL_S

    async def read(self, after: str, limit: int) -> Batch:
        """See ``ChangeFeed.read``: a change is a version of a row."""
        return await read_current(lambda: self._read_once(after, limit), self._renew)

    async def _read_once(self, after: str, limit: int) -> Batch:
        point = Watermarks.parse(after)
        self._seen = await self._version()
        begun_at = trio.current_time()
        batch = await self._reading.run(lambda connection: self._read(connection, point, limit, self._seen))
        self._pause_s = min(max(POLL_S, REST_SHARE * (trio.current_time() - begun_at)), POLL_MAX_S)
        return batch

    async def wait(self) -> None:
        """See ``ChangeFeed.wait``: after a pause; of a file, once somebody has committed.

        The pause grows with the time that reading takes. Of a quiet file it returns now and then all the same.
        """
        await trio.sleep(self._pause_s)
        if self._file is None:
            return
        with trio.move_on_after(POLL_MAX_S):
            while await self._version() == self._seen:  # noqa: ASYNC110 - SQLite does not notify
                await trio.sleep(FILE_POLL_S)

    async def origin(self) -> str:
        """See ``ChangeFeed.origin``: now. What is there is not sent."""
        self._seen = await self._version()
        return await self._reading.run(lambda connection: self._now(connection, self._seen))

    async def restart(self) -> str:
        """See ``ChangeFeed.restart``: now."""
        return await self.origin()

    async def is_foreign(self, point: str) -> bool:
        """See ``ChangeFeed.is_foreign``."""
        return is_foreign(point, await self._reading.run(Identity.of), self._dialect)

    async def identified(self, point: str) -> str:
        """See ``ChangeFeed.identified``."""
        found = Watermarks.parse(point)
        if found.identity.source:
            return point
        ours = await self._reading.run(Identity.of)
        return str(evolve(found, identity=evolve(found.identity, source=ours.source)))

    async def seal(self, after: str, upto: str) -> str:  # noqa: ARG002 - nothing is written into the database
        """See ``ChangeFeed.seal``: the point as given."""
        return upto

    async def settle(self, point: str) -> None:
        """See ``ChangeFeed.settle``: nothing to do."""

    async def trim(self, upto: str, limit: int) -> int:  # noqa: ARG002 - nothing is kept for anybody
        """See ``ChangeFeed.trim``: there is nothing to delete."""
        await trio.lowlevel.checkpoint()
        return 0

    async def consumer(self) -> Consumer | None:
        """See ``ChangeFeed.consumer``: nothing is kept beside the changes."""
        await trio.lowlevel.checkpoint()
        return None

    async def adopt(self, consumer: Consumer) -> None:  # noqa: ARG002 - the same
        """See ``ChangeFeed.adopt``: nothing is kept beside the changes."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        await self._reading.aclose()

    async def _renew(self) -> bool:
        """Inspect the tables again; return whether they have changed. Raises ``MappingError``."""
        before = self._tables
        self._use(await self._reading.run(lambda connection: inspect_again(connection, before)))
        return self._tables != before

    def _use(self, tables: Tables) -> None:
        self._tables = tables
        self._objects = Objects(self._dialect, tables, self._text_chars_max)
        self._sweeps = {kind: Sweep(self._dialect, table, self._text_chars_max) for kind, table in tables.items()}

    async def _version(self) -> FileVersion | None:
        """Of a file its version now; a file in the place of another is opened anew."""
        if self._file is None:
            return None
        version = await self._file.ask()
        if self._seen is not None and version.file != self._seen.file:
            await self._reading.aclose()
            version = await self._file.ask()
        return version

    def _read(self, connection: sa.Connection, point: Watermarks, limit: int, file: FileVersion | None) -> Batch:
        ours = Identity.of(connection, file)
        # Points of older versions have no source. A file that was moved is the same one.
        same_source = file is not None or point.identity.source in {"", ours.source}
        if point.identity.history != ours.history or not same_source:
            message = "the database is another one, or another file, than the one that was recorded"
            raise ResumePointLost(message)
        self._remember(point)
        now_us = clock_us(connection, file)
        self._serial += 1
        taken = _Taken(limit=limit, now_us=now_us)
        marks: dict[Kind, Mark] = {}
        for kind in _turned(list(self._sweeps), point.serial):  # else the first could starve the others
            mark = point.marks.get(kind)  # None: mapped since then
            marks[kind] = self._swept(connection, kind, mark or self._begun(connection, kind, now_us), taken)
        if not taken.versions and marks == point.marks:
            return Batch(objects=(), resume_point=str(point), changes=0, more=False)
        found = sorted(taken.versions, key=lambda version: version.place)
        return Batch(
            objects=self._objects.read(connection, (Change(v.kind, "U", v.key, (None, None)) for v in found)),
            resume_point=str(self._point(ours, marks)),
            changes=len(found),
            more=taken.is_full or any(point.marks[kind].upto_us is not None for kind in marks if kind in point.marks),
        )

    def _remember(self, point: Watermarks) -> None:
        """Know what was given before this point, and nothing else: what came after it was not recorded."""
        if point.life == self._life:
            if point.serial != self._serial:
                self._given.take_back(point.serial)
        else:
            self._given.load(point)
            self._serial = max(self._serial, point.serial)
        for kind, mark in point.marks.items():
            oldest_us = mark.oldest_us(self._reach_us(kind)) if kind in self._sweeps else None
            if oldest_us is not None:
                self._given.forget_before(kind, oldest_us)

    def _swept(self, connection: sa.Connection, kind: Kind, mark: Mark, taken: "_Taken") -> Mark:
        """Take what is new of one table, up to the limit of all together; the mark after it."""
        sweep, reach_us = self._sweeps[kind], self._reach_us(kind)
        lower_us = None if mark.newest_us is None else mark.newest_us - reach_us
        place, newest_us = mark.after, mark.upto_us
        for version in versions(sweep, connection, lower_us, mark.after, mark.upto_us):
            if not self._given.has(kind, version.digest):
                if taken.is_full:
                    upto_us = newest_us if mark.upto_us is not None else sweep.newest_us(connection, lower_us)
                    return evolve(mark, after=place, upto_us=upto_us)
                self._given.add(kind, version.digest, self._serial, version.place[0])
                taken.versions.append(version)
            place = version.place
            newest_us = place[0] if mark.upto_us is None else mark.upto_us
        return Mark(newest_us=self._newer(kind, mark.newest_us, newest_us, taken.now_us))

    def _begun(self, connection: sa.Connection, kind: Kind, now_us: int) -> Mark:
        """The mark of a table as it is: all of it counts as given."""
        sweep = self._sweeps[kind]
        newest_us = self._newer(kind, None, sweep.newest_us(connection, None), now_us)
        if newest_us is not None:
            for version in versions(sweep, connection, newest_us - self._reach_us(kind), None, None):
                self._given.add(kind, version.digest, self._serial, version.place[0])
        return Mark(newest_us=newest_us)

    def _newer(self, kind: Kind, before_us: int | None, found_us: int | None, now_us: int) -> int | None:
        """The watermark after a sweep. A moment far ahead of the database's clock must not hide what is to come."""
        if found_us is None:
            return before_us
        capped_us = min(found_us, now_us + self._sweeps[kind].clock.ahead_max_us)
        return capped_us if before_us is None else max(before_us, capped_us)

    def _now(self, connection: sa.Connection, file: FileVersion | None) -> str:
        self._serial += 1
        now_us = clock_us(connection, file)
        marks = {kind: self._begun(connection, kind, now_us) for kind in self._sweeps}
        return str(self._point(Identity.of(connection, file), marks))

    def _point(self, identity: Identity, marks: Mapping[Kind, Mark]) -> Watermarks:
        oldest = {kind: marks[kind].oldest_us(self._reach_us(kind)) for kind in self._sweeps}
        digests = {kind: self._given.newest(kind, moment) for kind, moment in oldest.items() if moment is not None}
        return Watermarks(identity=identity, life=self._life, serial=self._serial, marks=marks, digests=digests)

    def _reach_us(self, kind: Kind) -> int:
        """How far a sweep reaches back."""
        return self._overlap_us + self._sweeps[kind].clock.slack_us


@frozen(kw_only=True)
class _Taken:
    """What one read has found in all tables together, at what time."""

    limit: int
    now_us: int
    versions: list[Version] = field(factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.versions) == self.limit


def _turned(kinds: list[Kind], by: int) -> list[Kind]:
    first = by % len(kinds)
    return kinds[first:] + kinds[:first]
