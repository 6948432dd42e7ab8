"""The names of durable subscriptions that each user has used lately on this node: so many, and no more.

The store keeps a row for each name until it was not used for ``[log] retain_durables_s``; a client that invents a name
each time would fill it. Each node counts the names that it has seen since its start. Its memory is bounded as well:
the user that came the longest ago is forgotten first. Independent of store and clock.
"""

from collections import OrderedDict
from typing import Final

PER_USER_MAX: Final = 256
NAMES_MAX: Final = 100_000
"""Of all users."""


class Names:
    """When each name was used last, by user. ``retain_s``: for how long an unused name counts."""

    def __init__(self, per_user_max: int, retain_s: float) -> None:
        self._per_user_max = per_user_max
        self._retain_s = retain_s
        self._used: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()  # who and what was used last comes last
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, owner: str, name: str, now: float) -> bool:
        """Count a name as used; False, with nothing changed, where the user has used as many others as are allowed."""
        names = self._used.setdefault(owner, OrderedDict())
        self._used.move_to_end(owner)
        while names and next(iter(names.values())) < now - self._retain_s:
            names.popitem(last=False)
            self._count -= 1
        if name not in names:
            if len(names) >= self._per_user_max:
                return False
            self._count += 1
        names[name] = now
        names.move_to_end(name)
        while self._count > NAMES_MAX and len(self._used) > 1:
            self._count -= len(self._used.popitem(last=False)[1])
        return True
