"""An application under load, as a process of its own: six writers, independent of airy-trio, until SIGTERM.

    python -m tests.drill.load URL SEED LONG_AFTER_S DELAY_MAX_S [LONG_S [REST_MAX_S]]

Transactions of random length, with random delays up to ``DELAY_MAX_S``, rollbacks and savepoints, change a few tags
that all writers want, and tags that only one writer changes; after ``LONG_AFTER_S`` one transaction stays open for
``LONG_S``. Between two transactions a writer rests for up to ``REST_MAX_S``, by default not at all. Each change of a
tag adds one to the number in its ``name``, under the row's lock: in the order of commits the number only grows.
Writers delete only tags of their own, and never create these again. On SQLite the transactions run one after the
other. The process prints ``BEGUN`` once all writers run, and at the end, as JSON, what it has done.
"""

import json
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import NamedTuple

import psycopg
import sqlalchemy as sa

from airy_trio.database import SQLITE, sqlite_path
from airy_trio.verify.scratch import PostgresConnection, ScratchConnection, SqliteConnection

WRITERS = 6
CONTESTED = 20
STATEMENTS_MAX = 5
RECONNECT_S = 0.05
LONG_S = 4.0
LONG = "long"
BEGUN = "begun"

_CHANGE = (
    "insert into tags (id, name, color) values (?, '1', 'red') "
    "on conflict (id) do update set name = cast(cast(tags.name as int) + 1 as text)"
)
_CUT = (psycopg.OperationalError, sa.exc.OperationalError)
"""What a writer gets whose Postgres goes away. A lock of SQLite that stays for longer than it waits is a failure."""


class Rhythm(NamedTuple):
    """What chance decides, and the times, see above."""

    seed: int
    delay_max_s: float
    long_s: float = LONG_S
    rest_max_s: float = 0


class Writer:
    """One connection's worth of transactions. ``tally``: of all writers."""

    def __init__(self, number: int, rhythm: Rhythm, stop: threading.Event, tally: Counter[str]) -> None:
        self._number = number
        self._random = random.Random(f"{rhythm.seed} {number}")
        self._rhythm = rhythm
        self._stop = stop
        self._tally = tally
        self._made = 0
        self._own: list[str] = []

    def transact(self, connection: ScratchConnection) -> None:
        """Do one transaction."""
        connection.execute(connection.begin)
        contested = sorted(self._random.sample(range(CONTESTED), STATEMENTS_MAX))  # in order, or writers deadlock
        made, deleted = [], []
        for number in contested[: self._random.randint(1, STATEMENTS_MAX)]:
            discarded = self._random.random() < 0.15
            if discarded:
                connection.execute("savepoint s")
            what = self._random.random()
            if what < 0.4:
                connection.execute(_CHANGE, f"contested {number}")
            elif what < 0.9 or not self._own:
                self._made += 1
                connection.execute(_CHANGE, f"{self._number}-{self._made}")
                made += [] if discarded else [f"{self._number}-{self._made}"]
            else:
                gone = self._random.choice(self._own)
                connection.execute("delete from tags where id = ?", gone)
                deleted += [] if discarded else [gone]
            self._stop.wait(self._random.uniform(0, self._rhythm.delay_max_s))
            if discarded:
                connection.execute("rollback to s")
        if self._random.random() < 0.15:
            connection.execute("rollback")
            self._tally["rolled back"] += 1
            return
        connection.execute("commit")
        self._tally["committed"] += 1
        self._own = [id_ for id_ in [*self._own, *made] if id_ not in deleted][-CONTESTED:]

    def transact_for_long(self, connection: ScratchConnection) -> None:
        """Do the one that stays open, and stop."""
        connection.execute(connection.begin)
        for half in ("early", "late"):
            for number in range(CONTESTED):
                connection.execute(_CHANGE, f"{LONG} {half} {number}")
            if half == "early":
                self._stop.wait(self._rhythm.long_s)
        connection.execute("commit")
        self._tally[LONG] += 1

    def work(self, connect: Callable[[], ScratchConnection], long_after_s: float | None) -> None:
        """Run transactions until ``stop``, or the long one until it is committed, over new connections after a cut."""
        is_long = long_after_s is not None
        self._stop.wait(long_after_s or 0)
        while not (self._tally[LONG] if is_long else self._stop.is_set()):
            try:
                with closing(connect()) as connection:
                    if is_long:
                        self.transact_for_long(connection)
                    while not is_long and not self._stop.is_set():
                        self.transact(connection)
                        self._stop.wait(self._random.uniform(0, self._rhythm.rest_max_s))
            except _CUT:
                self._tally["cut"] += 1
                self._stop.wait(RECONNECT_S)


def connecting_to(url: str) -> Callable[[], ScratchConnection]:
    """What opens a connection to the database."""
    if sa.make_url(url).get_backend_name() == SQLITE:
        return partial(SqliteConnection, sqlite_path(url))
    return partial(PostgresConnection, sa.create_engine(url, isolation_level="AUTOCOMMIT", pool_size=WRITERS + 1))


def main(url: str, rhythm: Rhythm, long_after_s: float) -> None:
    """Write until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    connect = connecting_to(url)
    tally = Counter({"committed": 0, "rolled back": 0, "cut": 0, LONG: 0})
    writers = [
        threading.Thread(
            target=Writer(number, rhythm, stop, tally).work, args=(connect, None if number else long_after_s)
        )
        for number in range(WRITERS + 1)
    ]
    for writer in writers:
        writer.start()
    print(BEGUN, flush=True)  # noqa: T201 - this is the answer
    for writer in writers:
        writer.join()
    print(json.dumps(tally), flush=True)  # noqa: T201 - this is the answer


if __name__ == "__main__":
    url, seed, long_after_s, *times = sys.argv[1:]
    main(url, Rhythm(int(seed), *map(float, times)), float(long_after_s))
