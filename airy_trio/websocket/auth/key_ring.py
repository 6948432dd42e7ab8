"""The keys that count now, kept fresh by one task: asked for anew when a token names an unknown one, and now and then.

What cannot be had leaves the keys as they are. However many tokens name unknown keys, the source is asked once in its
``pause_s``, by the one task; who waits for it waits for a bounded time.
"""

import math
from typing import Final

import structlog
import trio

from airy_trio.websocket.auth.fetching import FETCH_TIMEOUT_S
from airy_trio.websocket.auth.key_sources import KeySource
from airy_trio.websocket.auth.keys import Key, KeysFault

logger = structlog.get_logger(__name__)

RETRY_S: Final = 1.0
"""After the first failure; each further one doubles it, up to the source's ``pause_s``."""
WAIT_S: Final = FETCH_TIMEOUT_S + 1


class KeyRing:
    """The keys, and the source that they come from; without one they stay.

    ``loaded``: whether they are known; a server of keys may not have answered yet.
    """

    def __init__(self, keys: tuple[Key, ...] = (), source: KeySource | None = None) -> None:
        self.keys = keys
        self.loaded = source is None or bool(keys)
        self.source = source
        self._begun_at = -math.inf
        self._due_at = math.inf if source is None else -math.inf
        self._loading = False
        self._failures = 0
        self._wanted = trio.Event()
        self._ended = trio.Event()

    def retire(self) -> None:
        """Ask for nothing any more: another one counts. Who waits here is let go."""
        self.source = None
        self._wanted.set()
        self._ended.set()

    async def wait_newer(self) -> bool:
        """Ask for the keys anew and wait for them; False where they were asked for too short a time ago."""
        if self.source is None:
            return False
        ended = self._ended
        if not self._loading:
            if trio.current_time() < self._begun_at + self.source.pause_s:
                return False
            self._wanted.set()
        with trio.move_on_after(WAIT_S):
            await ended.wait()
        return ended.is_set()

    async def refresh(self) -> bool:
        """Wait until the keys are due or wanted, and load them once; True where they are others than before."""
        with trio.move_on_at(self._due_at):
            await self._wanted.wait()
        self._wanted = trio.Event()
        source = self.source  # it may be retired while it is asked
        if source is None:
            return False
        self._loading, self._begun_at = True, trio.current_time()
        try:
            return self._take(await source.load(), source)
        except KeysFault as fault:
            return self._put_off(str(fault), source)
        except Exception as error:  # noqa: BLE001 - beyond this the server would end, by what another one has answered
            return self._put_off(f"an error of the program: {type(error).__name__}", source)
        finally:
            self._loading = False
            self._ended.set()
            self._ended = trio.Event()

    def _put_off(self, reason: str, source: KeySource) -> bool:
        if not self._failures:
            logger.warning("auth.jwt_key: the keys stay as they are", reason=reason, known=len(self.keys))
        self._due_at = trio.current_time() + min(math.ldexp(RETRY_S, min(self._failures, 10)), source.pause_s)
        self._failures += 1
        return False

    def _take(self, keys: tuple[Key, ...], source: KeySource) -> bool:
        changed = keys != self.keys
        if changed or self._failures:
            logger.info("keys of web tokens loaded", keys=len(keys))
        self.keys, self.loaded, self._failures = keys, True, 0
        self._due_at = trio.current_time() + source.refresh_s
        return changed
