"""Objects that are alive without the cycle collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def freed_without_the_collector(*kinds: type) -> Iterator[list[object]]:
    """Disable the collector for the block. Afterwards the list has the new objects that are still alive.

    All earlier objects are frozen, because searching them takes longer than most tests. They stay frozen: unfreezing
    would include what the tests import, and each full collection of later tests would walk that. The block may run the
    collector itself, for cycles that are not ours.
    """
    left: list[object] = []
    gc.collect()  # garbage that is frozen would never be freed, without a warning
    gc.disable()
    gc.freeze()
    try:
        yield left
        left += [one for one in gc.get_objects() if isinstance(one, kinds)]
    finally:
        gc.enable()
