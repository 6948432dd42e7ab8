"""An idle process that measures how busy the machine is: it wakes up regularly, and sometimes writes to the disk.

    python -m tests.drill.idler FILE

At SIGTERM it prints two 99th percentiles in milliseconds, as JSON: how late it woke up (``late_ms``), and how long it
took to write a few octets to the disk (``disk_ms``).
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
    """Return the 99th percentile in milliseconds."""
    return round(sorted(durations_s)[int(len(durations_s) * 0.99)] * 1000, 1)


def main(file: str) -> None:
    """Measure until SIGTERM."""
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
