"""What was committed and what was received, and what is wrong between the two.

Every object has a version, which each change of it makes one greater under the lock of its row: in the order of the
commits it only grows. An event is the current state of an object, so a version may be passed over when a newer one of
the same object comes; the last committed one must come, none twice, and none after a newer one.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import frozen

GONE: Final = 2**62
"""The version of an object that was deleted, which is for good."""

Change = tuple[str, int]
"""An object and its version."""


@frozen(kw_only=True)
class LossCertificate:
    """What came of it. The times are in seconds, from the COMMIT to the client.

    ``lost``: objects whose last committed version was not the last received; ``missing``: positions that never came.
    ``duplicated``, ``reordered``: the events at fault, in words.
    """

    counts: Mapping[str, int]
    received: int
    lost: Sequence[str]
    missing: int
    duplicated: Sequence[str]
    reordered: Sequence[str]
    latencies_s: Sequence[float]

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, duplicated or reordered of what was sent, and something was."""
        return bool(self.counts["changes"]) and not (self.lost or self.missing or self.duplicated or self.reordered)

    def latency_s(self, share: float) -> float | None:
        """The latency that this share of the changes did not exceed; None where nothing came."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Ledger:
    """Written by several threads. Times are of one clock that never goes back, in seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._committing: dict[Change, float] = {}
        self._committed: set[str] = set()
        self._versions: dict[str, list[int]] = {}
        self._offsets: set[int] = set()
        self._last_offset = 0
        self._missing = 0
        self._duplicated: list[str] = []
        self._reordered: list[str] = []
        self._latencies_s: list[float] = []

    def count(self, what: str) -> None:
        """Count something that happened."""
        with self._lock:
            self._counts[what] += 1

    def committing(self, changes: Iterable[Change], now: float) -> None:
        """Note that the COMMIT of these changes is sent now."""
        with self._lock:
            self._committing.update(dict.fromkeys(changes, now))

    def committed(self, changes: Sequence[Change]) -> None:
        """Note that the database has said that they are committed."""
        with self._lock:
            self._committed.update(object_ for object_, _ in changes)
            self._counts["changes"] += len(changes)
            self._counts["transactions"] += 1

    def received(self, offset: int, change: Change, now: float) -> None:
        """Note an event and its position."""
        object_, version = change
        with self._lock:
            seen = self._versions.setdefault(object_, [])
            if offset in self._offsets or version in seen:
                self._duplicated.append(f"{object_}, at offset {offset}")
            elif offset < self._last_offset or (seen and version < max(seen)):
                self._reordered.append(f"{object_}, at offset {offset}")
            self._missing += max(0, offset - self._last_offset - 1)
            self._last_offset = max(self._last_offset, offset)
            self._offsets.add(offset)
            seen.append(version)
            if change in self._committing:
                self._latencies_s.append(now - self._committing[change])

    def certificate(self, rows: Mapping[str, int]) -> LossCertificate:
        """Compare with the ``rows`` that there are at the end: the version of each object that was not deleted."""
        with self._lock:
            objects = {*rows, *self._committed, *self._versions}
            last = {object_: versions[-1] for object_, versions in self._versions.items()}
            return LossCertificate(
                counts=Counter(self._counts),
                received=len(self._offsets) + len(self._duplicated),
                lost=sorted(object_ for object_ in objects if last.get(object_) != rows.get(object_, GONE)),
                missing=self._missing,
                duplicated=tuple(self._duplicated),
                reordered=tuple(self._reordered),
                latencies_s=tuple(self._latencies_s),
            )
