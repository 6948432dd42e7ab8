"""Which views have grown since somebody asked: for one who waits for it."""

from collections.abc import Set as AbstractSet

import trio

from airy_trio.log.views import View


class Growth:
    """Gathers views until they are waited for."""

    def __init__(self) -> None:
        self._views: set[View] = set()
        self._any = trio.Event()

    def report(self, views: AbstractSet[View]) -> None:
        """These have grown, or lost their past."""
        if views:
            self._views |= views
            self._any.set()

    async def wait(self) -> frozenset[View]:
        """Those that were reported since the last call; at least one. For one consumer."""
        await self._any.wait()
        self._any = trio.Event()
        grown, self._views = frozenset(self._views), set()
        return grown
