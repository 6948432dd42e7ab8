"""An application that changes all tags of an SQLite file in one transaction, and then waits to be killed.

    python -m tests.drill.killed_writer FILE

Its cache holds one page, so that most changes are already in the file: the next process that opens the file must
restore the old pages.
"""

import sqlite3
import sys

TIMEOUT_S = 20.0


def main(path: str) -> None:
    """Change the tags, and wait until stdin ends."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=TIMEOUT_S)
    connection.execute("pragma cache_size = 1")
    connection.execute("begin immediate")
    connection.execute("update tags set name = '0', color = 'half written'")
    sys.stdout.write("half written\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
