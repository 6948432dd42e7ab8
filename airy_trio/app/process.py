"""What a server needs of its own process: as many files as it may have, and a collector that is patient.

For ``run``, the program; ``serve`` inside somebody else's program leaves that process as it is.
"""

import gc
import resource
import sys
from contextlib import suppress
from typing import Final

GC_THRESHOLDS: Final = (5_000, 200, 100)
"""Python's own let the collector walk over all connections while they come in: 1754 against 2497 of them a second.

What a few dozen new ones have made is still in the processor's cache when it walks over that, which takes a millisecond
or two; over what hundreds have made it took twenty at once, in which no event is sent. Older objects are walked over
after a million new ones.
"""
SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread of the recorder waits for the interpreter while clients keep it busy, each time it comes back from
the database: with Python's own 5 ms a crowd of hostile clients doubles the p99 from commit to client."""
_OPEN_MAX: Final = 10_240
"""What macOS grants at least, where its hard limit says "unlimited" and means less."""


def prepare() -> None:
    """Raise the soft limit of open files to the hard one; set the collector's thresholds and the switch interval."""
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _raise_file_limit()


def freeze() -> None:
    """Let the collector pass over everything that the start has made, for good."""
    gc.collect()
    gc.freeze()


def _raise_file_limit() -> None:
    """Raise it as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for files in (hard, max(soft, _OPEN_MAX)):
        if files == soft:
            break
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            break
