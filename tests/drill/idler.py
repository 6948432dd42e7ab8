"""A process that does nothing but wake up: how late it does tells how much others take of this machine.

    python -m tests.drill.idler

At SIGTERM it says on stdout, in milliseconds, how late it woke up at most in 99 of 100 times.
"""

import signal
import sys
import threading
import time

PAUSE_S = 0.005


def main() -> None:
    """Wake up again and again until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    late_s = []
    while not stop.is_set():
        due_at = time.monotonic() + PAUSE_S
        time.sleep(PAUSE_S)
        late_s.append(time.monotonic() - due_at)
    sys.stdout.write(f"{sorted(late_s)[int(len(late_s) * 0.99)] * 1000:.1f}\n")


if __name__ == "__main__":
    main()
