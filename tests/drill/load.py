"""An application under load, as a process: six of ``airy_trio.verify.writers``, until SIGTERM.

    python -m tests.drill.load URL SEED LONG_AFTER_S DELAY_MAX_S [LONG_S [REST_MAX_S]]

After ``LONG_AFTER_S`` the long transaction begins and stays open for ``LONG_S``; it is repeated until it is committed.
The process prints ``BEGUN`` once all writers run, and at the end, as JSON, the counts in ``COUNTS``.
"""

import json
import signal
import sys
import threading
from random import Random

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from airy_trio.database import SQLITE, SQLITE_BUSY_TIMEOUT_S
from airy_trio.verify.writers import RECONNECT_S, ApplicationTable, Ledger, Writer, transact_long

WRITERS = 6
LONG_S = 4.0
BEGUN = "begun"
COUNTS = ("transactions", "rolled back", "connections lost", "long")


def table_at(url: str) -> ApplicationTable:
    """Return the tags in the database of this URL."""
    if sa.make_url(url).get_backend_name() == SQLITE:
        more = {"connect_args": {"timeout": 4 * SQLITE_BUSY_TIMEOUT_S}}
        return ApplicationTable(sa.create_engine(url, isolation_level="AUTOCOMMIT", **more))
    return ApplicationTable(sa.create_engine(url, isolation_level="AUTOCOMMIT", pool_size=WRITERS + 1))


def main(url: str, seed: str, long_after_s: float, pauses: tuple[float, float], long_s: float) -> None:
    """Write until SIGTERM. ``pauses``: ``delay_max_s`` and ``rest_max_s`` of each ``Writer``."""
    table, ledger, over = table_at(url), Ledger(), threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: over.set())

    def write_long() -> None:
        over.wait(long_after_s)
        while not ledger.counts["long"]:
            try:
                transact_long(table, ledger, over, long_s)
            except OperationalError:
                ledger.count("connections lost")
                over.wait(RECONNECT_S)

    works = [
        Writer(number, table, ledger, over, *pauses, Random(f"{seed} {number}")).run for number in range(1, WRITERS + 1)
    ]
    threads = [threading.Thread(target=work) for work in (write_long, *works)]
    for thread in threads:
        thread.start()
    print(BEGUN, flush=True)  # noqa: T201 - the caller waits for it
    for thread in threads:
        thread.join()
    counts = ledger.counts
    print(json.dumps({name: counts[name] for name in COUNTS}), flush=True)  # noqa: T201 - the caller reads it


if __name__ == "__main__":
    url, seed, long_after_s, delay_max_s, *times = sys.argv[1:]
    long_s, rest_max_s, *_ = *map(float, times), *(LONG_S, 0.0)[len(times) :]
    main(url, seed, float(long_after_s), (float(delay_max_s), rest_max_s), long_s)
