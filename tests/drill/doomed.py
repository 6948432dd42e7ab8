"""An application that changes all tags of an SQLite file in one transaction, and waits to be killed in it.

    python -m tests.drill.doomed FILE

Its cache has room for one page, so that most of what it changes is in the file by then: whoever opens the file next has
to put the old pages back.
"""

import sqlite3
import sys

TIMEOUT_S = 20.0


def main(path: str) -> None:
    """Return only if stdin ends."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=TIMEOUT_S)
    connection.execute("pragma cache_size = 1")
    connection.execute("begin immediate")
    connection.execute("update tags set name = '0', color = 'half written'")
    sys.stdout.write("half written\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
