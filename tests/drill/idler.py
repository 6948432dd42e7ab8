"""A process that only wakes up, and now and then writes to the disk: how late tells what others take of this machine.

    python -m tests.drill.idler FILE

At SIGTERM it says on stdout, as JSON, how long it took in 99 of 100 times, in milliseconds: to wake up (``late_ms``),
and until a few octets were on the disk (``disk_ms``).
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

PAUSE_S = 0.005
WRITE_EVERY = 20


def percentile_ms(durations_s: Sequence[float]) -> float:
    """The 99th, in milliseconds."""
    return round(sorted(durations_s)[int(len(durations_s) * 0.99)] * 1000, 1)


def main(file: str) -> None:
    """Wake up again and again until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    late_s, disk_s = [0.0], [0.0]
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    while not stop.is_set():
        due_at = time.monotonic() + PAUSE_S
        time.sleep(PAUSE_S)
        late_s.append(time.monotonic() - due_at)
        if len(late_s) % WRITE_EVERY == 0:
            begun_at = time.monotonic()
            os.write(descriptor, b"x" * 100)
            os.fsync(descriptor)
            disk_s.append(time.monotonic() - begun_at)
    sys.stdout.write(json.dumps({"late_ms": percentile_ms(late_s), "disk_ms": percentile_ms(disk_s)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
