"""An application: a process that runs given statements in its own connections, independent of airy-trio.

    python writer.py sqlite:///FILE | postgresql://…

Each line of stdin is {"session": "a", "statements": ["insert …", …]}. The statements run one after the other in the
connection of that session; each commits unless ``begin`` is among them. stdout has a line for each: "done" or the
error.
"""

import json
import sqlite3
import sys
from collections.abc import Callable

BUSY_TIMEOUT_S = 20


def connect(url: str) -> Callable[[str], object]:
    """Return the function that executes a statement in a new connection in autocommit mode."""
    if url.startswith("sqlite:///"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=BUSY_TIMEOUT_S)
        connection.execute("pragma synchronous = off")  # faster; tests need no durability
        return connection.execute
    import psycopg  # noqa: PLC0415 - slow to import, and not needed for SQLite

    execute = psycopg.connect(url.replace("+psycopg", ""), autocommit=True).execute
    return lambda statement: execute(statement.encode())


def main(url: str) -> None:
    """Run the lines of stdin until its end."""
    sessions: dict[str, Callable[[str], object]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        session = request["session"]
        try:
            if session not in sessions:
                sessions[session] = connect(url)
            for statement in request["statements"]:
                sessions[session](statement)
        except Exception as fault:  # noqa: BLE001 - reported by the test
            print(json.dumps(repr(fault)), flush=True)  # noqa: T201 - the caller reads it
        else:
            print("done", flush=True)  # noqa: T201 - the caller reads it


if __name__ == "__main__":
    main(sys.argv[1])
