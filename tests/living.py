"""Objects that are alive without the cycle collector.

Objects of earlier tests may be alive too, because a server freezes all objects at its start (``gc.freeze``). So only
the difference counts.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def freed_without_the_collector(*kinds: type) -> Iterator[list[object]]:
    """Disable the collector for the block. Afterwards the list has the new objects that are still alive.

    The block may collect by itself: cycles that are not ours.
    """
    left: list[object] = []
    gc.disable()
    try:
        before = {id(one) for one in gc.get_objects() if isinstance(one, kinds)}
        yield left
        left += [one for one in gc.get_objects() if isinstance(one, kinds) and id(one) not in before]
    finally:
        gc.enable()
