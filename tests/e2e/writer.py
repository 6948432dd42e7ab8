"""An application: a process with connections of its own, which does as it is told and knows nothing of airy-trio.

    python writer.py sqlite:///FILE | postgresql://…

stdin, a line each: {"session": "a", "statements": ["insert …", …]}, done one after the other in the connection of that
session, each committed at once unless ``begin`` stands among them. stdout, a line for each line: "done", or the fault.
"""

import json
import sqlite3
import sys
from collections.abc import Callable

BUSY_TIMEOUT_S = 20


def connect(url: str) -> Callable[[str], object]:
    """What executes a statement in a new connection that commits by itself."""
    if url.startswith("sqlite:///"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=BUSY_TIMEOUT_S)
        connection.execute("pragma synchronous = off")  # faster; nobody pulls the plug of a test
        return connection.execute
    import psycopg  # noqa: PLC0415 - takes long, and who writes into SQLite does without

    execute = psycopg.connect(url.replace("+psycopg", ""), autocommit=True).execute
    return lambda statement: execute(statement.encode())


def main(url: str) -> None:
    """Do what comes on stdin, to its end."""
    sessions: dict[str, Callable[[str], object]] = {}
    for line in sys.stdin:
        told = json.loads(line)
        session = told["session"]
        try:
            if session not in sessions:
                sessions[session] = connect(url)
            for statement in told["statements"]:
                sessions[session](statement)
        except Exception as fault:  # noqa: BLE001 - for the test to show
            print(json.dumps(repr(fault)), flush=True)  # noqa: T201 - this is the answer
        else:
            print("done", flush=True)  # noqa: T201 - this is the answer


if __name__ == "__main__":
    main(sys.argv[1])
