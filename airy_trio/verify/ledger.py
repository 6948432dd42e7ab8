"""The ledger of a verification: what the writers committed, what the client received, and the difference.

Each object has a version. Every change increments it under the lock of the object's row, so in commit order it only
grows. An event carries the current state of its object, not the change that caused it: a version may be skipped if a
newer one of the same object follows. The last committed version must arrive, none may arrive twice, and none may arrive
after a newer one.
"""

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

GONE: Final = 2**62
"""The version of a deleted object. Deleted objects are not created again."""

Change = tuple[str, int]
"""An object and its version."""


def change_of(body: bytes | str) -> Change:
    """Return the object and the version in the body of an event about a tag that a writer changed."""
    event: dict[str, Any] = json.loads(body)
    version = GONE if event["type"] == "tag.deleted" else int(event["payload"]["name"])
    return event["payload"]["id"], version


@frozen(kw_only=True)
class LossCertificate:
    """The result of a verification. Latencies are in seconds, from the COMMIT to the client.

    ``lost``: objects whose last committed version is not the last one received; ``missing``: the number of positions
    that were skipped. ``duplicated``, ``reordered``: the faulty events, in words.
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
        """Whether changes were committed, and none was lost, duplicated or reordered."""
        return bool(self.counts["changes"]) and not (self.lost or self.missing or self.duplicated or self.reordered)

    def latency_s(self, share: float) -> float | None:
        """Return the latency that this share of the changes did not exceed, or None if nothing was received."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Ledger:
    """A thread-safe record of commits and events. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._committing: dict[Change, float] = {}
        self._committed: set[str] = set()
        self._received: set[Change] = set()
        self._newest: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._events = 0
        self._offsets: set[int] = set()
        self._last_offset = 0
        self._missing = 0
        self._duplicated: list[str] = []
        self._reordered: list[str] = []
        self._latencies_s: list[float] = []

    @property
    def counts(self) -> Counter[str]:
        """A copy of what was counted so far, with "changes" and "transactions" that were committed."""
        with self._lock:
            return Counter(self._counts)

    def count(self, occurrence: str) -> None:
        """Count one occurrence."""
        with self._lock:
            self._counts[occurrence] += 1

    def committing(self, changes: Iterable[Change], now: float) -> None:
        """Record that the COMMIT of these changes is sent now, which starts the latency."""
        with self._lock:
            self._committing.update(dict.fromkeys(changes, now))

    def committed(self, changes: Sequence[Change]) -> None:
        """Record that the database has confirmed the COMMIT."""
        with self._lock:
            self._committed.update(object_ for object_, _ in changes)
            self._counts["changes"] += len(changes)
            self._counts["transactions"] += 1

    def received(self, offset: int, change: Change, now: float) -> None:
        """Record an event and its position."""
        object_, version = change
        with self._lock:
            newest = self._newest.get(object_, 0)
            if offset not in self._offsets and (offset < self._last_offset or version < newest):
                self._reordered.append(f"{object_}, at offset {offset}")
            elif offset in self._offsets or change in self._received:
                self._duplicated.append(f"{object_}, at offset {offset}")
            self._missing += max(0, offset - self._last_offset - 1)
            self._last_offset = max(self._last_offset, offset)
            self._offsets.add(offset)
            self._received.add(change)
            self._newest[object_] = max(newest, version)
            self._last[object_] = version
            self._events += 1
            if change in self._committing:
                self._latencies_s.append(now - self._committing[change])

    def certificate(self, rows: Mapping[str, int]) -> LossCertificate:
        """Compare the events with the final ``rows``: the version of each object that was not deleted.

        The rows decide, not the confirmed commits: a writer that lost its connection during COMMIT does not know
        whether its changes were committed.
        """
        with self._lock:
            objects = {*rows, *self._committed, *self._last}
            return LossCertificate(
                counts=Counter(self._counts),
                received=self._events,
                lost=sorted(object_ for object_ in objects if self._last.get(object_) != rows.get(object_, GONE)),
                missing=self._missing,
                duplicated=tuple(self._duplicated),
                reordered=tuple(self._reordered),
                latencies_s=tuple(self._latencies_s),
            )
