"""What ``updated_at`` capture remembers of how far it has read: watermarks, and the versions of rows given lately.

A watermark is the newest moment that a whole sweep has seen; the next sweep begins an overlap before it, and passes
over what was given. All of it is in the resume point, so that a restart neither loses nor repeats, but for the digests:
of those only the newest ``DIGESTS_MAX``. In memory all of them are kept.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self, cast

from attrs import field, frozen

from airy_trio.changes.feed import ResumePointLost
from airy_trio.changes.identity import Identity
from airy_trio.changes.points import parsed
from airy_trio.changes.sweep import Place
from airy_trio.changes.tables import KINDS, Kind
from airy_trio.database import POSTGRES

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
