"""An application under load, as a process of its own: six writers that know nothing of airy-trio, until SIGTERM.

    python -m tests.drill.load URL SEED LONG_AFTER_S DELAY_MAX_S

Transactions of random length, with random delays up to ``DELAY_MAX_S``, rollbacks and savepoints, change a few tags
that all writers want, and tags that only one writer knows; after ``LONG_AFTER_S`` one transaction stays open for
``LONG_S``. Each change of a tag adds one to the number in its ``name``, under the row's lock: in the order of commits
the number only grows. Only what a single writer knows is deleted, for good. At its end it says on stdout, as JSON,
how much it has done.
"""

import json
import random
import signal
import sys
import threading
from collections import Counter
from typing import NamedTuple

import psycopg

WRITERS = 6
CONTESTED = 20
STATEMENTS_MAX = 5
RECONNECT_S = 0.05
LONG_S = 4.0
LONG = "long"

_CHANGE = (
    "insert into tags (id, name, color) values (%s, '1', 'red') "
    "on conflict (id) do update set name = cast(cast(tags.name as int) + 1 as text)"
)


class Rhythm(NamedTuple):
    """What chance decides, and how long a writer pauses after each statement at most."""

    seed: int
    delay_max_s: float


class Writer:
    """One connection's worth of transactions. ``tally``: of all writers."""

    def __init__(self, number: int, rhythm: Rhythm, stop: threading.Event, tally: Counter[str]) -> None:
        self._number = number
        self._random = random.Random(f"{rhythm.seed} {number}")
        self._delay_max_s = rhythm.delay_max_s
        self._stop = stop
        self._tally = tally
        self._made = 0
        self._own: list[str] = []

    def transact(self, connection: psycopg.Connection) -> None:
        """Do one transaction."""
        connection.execute("begin")
        contested = sorted(self._random.sample(range(CONTESTED), STATEMENTS_MAX))  # in order, so that nobody deadlocks
        made, deleted = [], []
        for number in contested[: self._random.randint(1, STATEMENTS_MAX)]:
            discarded = self._random.random() < 0.15
            if discarded:
                connection.execute("savepoint s")
            what = self._random.random()
            if what < 0.4:
                connection.execute(_CHANGE, [f"contested {number}"])
            elif what < 0.9 or not self._own:
                self._made += 1
                connection.execute(_CHANGE, [f"{self._number}-{self._made}"])
                made += [] if discarded else [f"{self._number}-{self._made}"]
            else:
                gone = self._random.choice(self._own)
                connection.execute("delete from tags where id = %s", [gone])
                deleted += [] if discarded else [gone]
            self._stop.wait(self._random.uniform(0, self._delay_max_s))
            if discarded:
                connection.execute("rollback to s")
        if self._random.random() < 0.15:
            connection.execute("rollback")
            self._tally["rolled back"] += 1
            return
        connection.execute("commit")
        self._tally["committed"] += 1
        self._own = [id_ for id_ in [*self._own, *made] if id_ not in deleted][-CONTESTED:]

    def transact_for_long(self, connection: psycopg.Connection) -> None:
        """Do the one that stays open, and stop."""
        connection.execute("begin")
        for half in ("early", "late"):
            for number in range(CONTESTED):
                connection.execute(_CHANGE, [f"{LONG} {half} {number}"])
            if half == "early":
                self._stop.wait(LONG_S)
        connection.execute("commit")
        self._tally[LONG] += 1

    def work(self, url: str, long_after_s: float | None) -> None:
        """Transact until it is told to stop, in a new connection whenever one is cut."""
        if long_after_s is not None:
            self._stop.wait(long_after_s)
        while not self._stop.is_set() and not (long_after_s is not None and self._tally[LONG]):
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    if long_after_s is not None:
                        self.transact_for_long(connection)
                    while long_after_s is None and not self._stop.is_set():
                        self.transact(connection)
            except psycopg.OperationalError:
                self._tally["cut"] += 1
                self._stop.wait(RECONNECT_S)


def main(url: str, rhythm: Rhythm, long_after_s: float) -> None:
    """Write until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    tally = Counter({"committed": 0, "rolled back": 0, "cut": 0, LONG: 0})
    writers = [
        threading.Thread(target=Writer(number, rhythm, stop, tally).work, args=(url, None if number else long_after_s))
        for number in range(WRITERS + 1)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    print(json.dumps(tally), flush=True)  # noqa: T201 - this is the answer


if __name__ == "__main__":
    main(sys.argv[1].replace("+psycopg", ""), Rhythm(int(sys.argv[2]), float(sys.argv[4])), float(sys.argv[3]))
