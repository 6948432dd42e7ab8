"""The change feed of a database that must not be written to: rows whose ``updated_at`` is new, read again and again.

Each table is swept in the order of that column, from an overlap before the newest moment that was seen. A transaction
may commit later than one that wrote later: as long as it is open for less than the overlap, its rows are still to be
met. What was given is passed over by the digest of the row's version, not by its moment alone, so that a second change
of the same moment is none of those.

A sweep that is cut at the limit goes on from its last place, up to the newest moment that there was when it began: the
next one reaches back from there, so that a long backlog hides nobody who committed meanwhile. Best effort all the same;
``feed.CANNOT_SEE`` is said in the log.

Which database a read-only feed reads, and what time it is there.

What ``updated_at`` capture remembers of how far it has read: watermarks, and the versions of rows given lately.

A watermark is the newest moment that a whole sweep has seen; the next sweep begins an overlap before it, and passes
over what was given. All of it is in the resume point, so that a restart neither loses nor repeats, but for the digests:
of those only the newest ``DIGESTS_MAX``. In memory all of them are kept.
"""

import base64
import binascii
import json
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self, cast

import sqlalchemy as sa
import structlog
import trio
from attrs import evolve, field, frozen

from airy_trio.capture.feed import OVERLAP_S, Batch, Consumer, ResumePointLost
from airy_trio.capture.inspection import inspect_again, read_current
from airy_trio.capture.mapping import KINDS, Kind, Tables
from airy_trio.capture.objects import Change, Objects
from airy_trio.capture.queries import TEXT_CHARS_MAX
from airy_trio.capture.resume_points import parsed
from airy_trio.capture.row_versions import SECOND_US, Place, RowVersion, TableScan, versions
from airy_trio.database import POSTGRES, DedicatedConnection
from airy_trio.database.sqlite import FileVersion, FileVersions

_DATABASE = sa.text(
    "select cast(system_identifier as text), cast(pg_database.oid as text) "
    "from pg_control_system(), pg_database where datname = current_database()"
)
_NOW = sa.text("select cast(extract(epoch from now()) * 1000000 as bigint)")


@frozen
class Identity:
    """Which database this is; nothing may be written into it, so what is there anyway must do.

    ``source`` names the database to which an event log belongs: the cluster and the number of the database in it, which
    a standby shares, or the resolved path of a file. ``history`` is the cluster, or the inode of the file: another file
    at the same path is another history of the same source.
    """

    history: str
    source: str

    @classmethod
    def of(cls, connection: sa.Connection, file: FileVersion | None = None) -> Self:
        """Ask for it. ``file``: the version of an SQLite file; without it the history is not known, but the source."""
        if connection.dialect.name == POSTGRES:
            cluster, number = connection.execute(_DATABASE).one()
            return cls(cluster, f"{cluster}.{number}")
        path = Path(connection.exec_driver_sql("PRAGMA database_list").one()[2])
        return cls("" if file is None else str(file.file[1]), str(path.resolve()))


def clock_us(connection: sa.Connection, file: FileVersion | None) -> int:
    """The database's clock, in microseconds since the epoch; of a file that of this machine."""
    if file is not None:
        return time.time_ns() // 1000
    found: int = connection.execute(_NOW).scalar_one()
    return found


DIGESTS_MAX: Final = 10_000
_BYTES: Final = 8  # of a digest


@frozen(kw_only=True)
class Mark:
    """How far one table has been read, in microseconds.

    ``newest_us``: of the last whole sweep, None where the table was empty. ``after`` and ``upto_us``: the sweep under
    way has come to this place and goes up to this moment.
    """

    newest_us: int | None
    after: Place | None = None
    upto_us: int | None = None

    @property
    def seen_us(self) -> int:
        """The newest moment that may have been given, but for those ahead of the clock."""
        known = (self.newest_us, None if self.after is None else self.after[0], self.upto_us)
        return max((moment for moment in known if moment is not None), default=0)

    def oldest_us(self, reach_us: int) -> int | None:
        """The oldest moment that is still to be looked at, where sweeps reach back so far; None: any."""
        if self.after is not None and self.upto_us is not None:
            return min(self.after[0], self.upto_us - reach_us)
        return None if self.newest_us is None else self.newest_us - reach_us


@frozen(kw_only=True)
class Watermarks:
    """A resume point. ``identity``: of the database; ``life``: of the feed that wrote it; ``serial``: which one it is.

    ``digests``: what was given lately, by kind. The source of the identity is "" in a point of an older version.
    """

    identity: Identity
    life: str
    serial: int
    marks: Mapping[Kind, Mark]
    digests: Mapping[Kind, tuple[int, ...]] = field(factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote.

        Raises ``ResumePointLost`` if another way of capture wrote it, and ``ResumePointTooNew``.
        """
        try:
            found: Any = parsed(text)
            return cls(
                identity=Identity(found["identity"], found.get("source", "")),
                life=found["life"],
                serial=int(found["serial"]),
                marks={kind: _mark(found["marks"][kind]) for kind in KINDS if kind in found["marks"]},
                digests={kind: _unpacked(found["digests"][kind]) for kind in KINDS if kind in found["digests"]},
            )
        except (ValueError, KeyError, TypeError, IndexError, binascii.Error):
            message = 'what was recorded is of another way of capture than "updated_at"'
            raise ResumePointLost(message) from None

    def __str__(self) -> str:
        return json.dumps(
            {
                "identity": self.identity.history,
                "source": self.identity.source,
                "life": self.life,
                "serial": self.serial,
                "marks": {kind: [mark.newest_us, mark.after, mark.upto_us] for kind, mark in self.marks.items()},
                "digests": {kind: _packed(digests) for kind, digests in self.digests.items()},
            },
            separators=(",", ":"),
        )


def is_foreign(text: str, identity: Identity, dialect: str) -> bool:
    """Whether a resume point is of another database than ``identity``, or of another way of capture.

    A point of an older version has no source. If it is of a file, it does not say: a replaced file has another inode.

    Raises ``ResumePointTooNew``.
    """
    try:
        recorded = Watermarks.parse(text).identity
    except ResumePointLost:
        return True
    if not recorded.source:
        return dialect == POSTGRES and recorded.history != identity.history
    return recorded.source != identity.source


class Given:
    """The versions of rows that were given within the overlap, each with the serial of the batch and its moment."""

    def __init__(self) -> None:
        self._entries: dict[Kind, dict[int, tuple[int, int]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def has(self, kind: Kind, digest: int) -> bool:
        """Whether this version was given."""
        return digest in self._entries.get(kind, ())

    def add(self, kind: Kind, digest: int, serial: int, moment_us: int) -> None:
        """Note that it is given with this batch."""
        self._entries.setdefault(kind, {})[digest] = serial, moment_us

    def take_back(self, serial: int) -> None:
        """Forget what was given after a batch: it was not recorded."""
        for kind, entries in self._entries.items():
            self._entries[kind] = {digest: entry for digest, entry in entries.items() if entry[0] <= serial}

    def forget_before(self, kind: Kind, moment_us: int) -> None:
        """Forget what no sweep comes to any more."""
        entries = self._entries.get(kind, {})
        if any(entry[1] < moment_us for entry in entries.values()):
            self._entries[kind] = {digest: entry for digest, entry in entries.items() if entry[1] >= moment_us}

    def load(self, point: Watermarks) -> None:
        """Begin with what a resume point of another feed remembers."""
        self._entries = {}
        for kind, digests in point.digests.items():
            moment_us = point.marks[kind].seen_us if kind in point.marks else 0
            for digest in digests:
                self.add(kind, digest, point.serial, moment_us)

    def newest(self, kind: Kind, moment_us: int) -> tuple[int, ...]:
        """The digests from a moment on: at most ``DIGESTS_MAX``, the newest."""
        entries = self._entries.get(kind, {})
        wanted = [(entry[1], digest) for digest, entry in entries.items() if entry[1] >= moment_us]
        return tuple(digest for _, digest in sorted(wanted)[-DIGESTS_MAX:])


def _mark(written: Any) -> Mark:  # noqa: ANN401 - of JSON
    newest_us, after, upto_us = written
    place = None if after is None else (int(after[0]), cast("str", after[1]))
    return Mark(newest_us=newest_us, after=place, upto_us=upto_us)


def _packed(digests: Iterable[int]) -> str:
    return base64.b64encode(b"".join(digest.to_bytes(_BYTES) for digest in digests)).decode()


def _unpacked(text: str) -> tuple[int, ...]:
    data = base64.b64decode(text, validate=True)
    return tuple(int.from_bytes(data[at : at + _BYTES]) for at in range(0, len(data), _BYTES))


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
        reading: DedicatedConnection,
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
        self._file = None if dialect == POSTGRES else FileVersions(reading)
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
        self._sweeps = {kind: TableScan(self._dialect, table, self._text_chars_max) for kind, table in tables.items()}

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
    versions: list[RowVersion] = field(factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.versions) == self.limit


def _turned(kinds: list[Kind], by: int) -> list[Kind]:
    first = by % len(kinds)
    return kinds[first:] + kinds[:first]
