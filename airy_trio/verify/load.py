"""The application of a verification: writers that know nothing of us, in threads, and somebody who cuts connections.

Transactions of random length change a few objects that all writers want and objects of their own, with pauses, so that
who begins first often commits last; some are rolled back, in part or whole, some are cut off, and one stays open for a
third of the time. On SQLite, which has one writer at a time, they come one after the other.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from airy_trio.verify.ledger import GONE, Change, Ledger
from airy_trio.verify.scratch import DRIVER_ERRORS, Scratch, ScratchConnection

WRITERS: Final = 4
CONTESTED: Final = 12
STATEMENTS_MAX: Final = 5
PAUSE_MAX_S: Final = 0.01
REST_MAX_S: Final = 0.03
"""Between two transactions of a writer: who verifies a database in use must not flood it."""
LONG_SHARE: Final = 1 / 3
LONG_OBJECTS: Final = 20
CUT_PERIOD_S: Final = 0.7
RECONNECT_S: Final = 0.05
ROLLBACK_CHANCE: Final = 0.12
SAVEPOINT_CHANCE: Final = 0.15
JOIN_S: Final = 10.0
END: Final = "the end"


class Load:
    """Writes for ``seconds``, then the object ``END``, then ends. ``stop`` ends it sooner."""

    def __init__(self, scratch: Scratch, ledger: Ledger, seconds: float) -> None:
        self._scratch = scratch
        self._ledger = ledger
        self._seconds = seconds
        self._over = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)
        self.failure: str | None = None
        """Why the end could not be written, in words."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End at once, and wait for it."""
        self._abandoned.set()
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        long_s = self._seconds * LONG_SHARE
        works: list[Callable[[], None]] = [
            *(_Writer(number, self._scratch, self._ledger, self._over).work for number in range(WRITERS)),
            lambda: _stay_open(self._scratch, self._ledger, self._over, long_s),
            self._cut,
        ]
        threads = [threading.Thread(target=work, name="verify writer", daemon=True) for work in works]
        for thread in threads:
            thread.start()
        self._over.wait(self._seconds)
        self._over.set()
        for thread in threads:
            thread.join(JOIN_S)
        if not self._abandoned.is_set():
            self._write_end()

    def _write_end(self) -> None:
        try:
            connection = self._scratch.connect()
            try:
                connection.execute(self._scratch.change, END)
            finally:
                connection.close()
        except DRIVER_ERRORS as error:
            self.failure = type(error).__name__

    def _cut(self) -> None:
        """Cut whoever records, and writers in the middle of something, now and then."""
        turn = 0
        while not self._over.wait(CUT_PERIOD_S):
            turn += 1
            try:
                for what in self._scratch.cut(recorder=turn % 3 == 0):
                    self._ledger.count(what)
            except DRIVER_ERRORS:
                self._ledger.count("cuts that failed")


class _Writer:
    def __init__(self, number: int, scratch: Scratch, ledger: Ledger, over: threading.Event) -> None:
        self._number = number
        self._scratch = scratch
        self._ledger = ledger
        self._over = over
        self._random = random.Random()  # noqa: S311 - who writes what is no secret
        self._made = 0
        self._own: list[str] = []

    def work(self) -> None:
        """Transact until it is over, in a new connection whenever one is cut."""
        while not self._over.is_set():
            try:
                connection = self._scratch.connect()
                try:
                    while not self._over.is_set():
                        self._transact(connection)
                        self._over.wait(self._random.uniform(0, REST_MAX_S))
                finally:
                    self._scratch.forget(connection)
            except DRIVER_ERRORS:  # cut off: what was under way is rolled back, or, at its COMMIT, nobody knows
                self._over.wait(RECONNECT_S)

    def _transact(self, connection: ScratchConnection) -> None:
        connection.execute(connection.begin)
        changes: list[Change] = []
        contested = sorted(self._random.sample(range(CONTESTED), STATEMENTS_MAX))  # in order: nobody deadlocks
        for number in contested[: self._random.randint(1, STATEMENTS_MAX)]:
            discarded = self._random.random() < SAVEPOINT_CHANCE
            if discarded:
                connection.execute("savepoint s")
            change = self._change(connection, number)
            self._over.wait(self._random.uniform(0, PAUSE_MAX_S))
            if discarded:
                connection.execute("rollback to savepoint s")
                self._ledger.count("savepoints rolled back")
            else:
                changes.append(change)
        if self._random.random() < ROLLBACK_CHANCE:
            connection.execute("rollback")
            self._ledger.count("rolled back")
            return
        _commit(connection, self._ledger, changes)
        last = dict(changes)
        self._own = [id_ for id_ in {*self._own, *last} if id_.startswith("own ") and last.get(id_) != GONE][
            -CONTESTED:
        ]

    def _change(self, connection: ScratchConnection, contested: int) -> Change:
        what = self._random.random()
        if what < 0.4:  # noqa: PLR2004 - some of each
            return _changed(connection, self._scratch, f"contested {contested}")
        if what < 0.9 or not self._own:  # noqa: PLR2004 - what is left is deletions
            self._made += 1
            return _changed(connection, self._scratch, f"own {self._number}-{self._made}")
        gone = self._own.pop(self._random.randrange(len(self._own)))  # for good, also where it is rolled back
        connection.execute(self._scratch.delete, gone)
        return gone, GONE


def _stay_open(scratch: Scratch, ledger: Ledger, over: threading.Event, seconds: float) -> None:
    """One transaction that writes early and commits late."""
    try:
        connection = scratch.connect(spared=True)
        try:
            connection.execute(connection.begin)
            changes = [_changed(connection, scratch, f"long early {number}") for number in range(LONG_OBJECTS)]
            over.wait(min(seconds, scratch.long_max_s))
            changes += [_changed(connection, scratch, f"long late {number}") for number in range(LONG_OBJECTS)]
            _commit(connection, ledger, changes)
            ledger.count("long")
        finally:
            scratch.forget(connection)
    except DRIVER_ERRORS:
        ledger.count("long ones that failed")


def _changed(connection: ScratchConnection, scratch: Scratch, id_: str) -> Change:
    ((version,),) = connection.execute(scratch.change, id_)
    return id_, int(version)


def _commit(connection: ScratchConnection, ledger: Ledger, changes: list[Change]) -> None:
    final = list(dict(changes).items())  # of several changes of an object in one transaction the last can be seen
    ledger.committing(final, time.monotonic())
    connection.execute("commit")
    ledger.committed(final)
