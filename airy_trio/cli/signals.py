"""Commands that run until Ctrl-C, which is no failure of theirs."""

import signal
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Final

import trio

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run_until_signalled(work: Callable[[], Awaitable[None]]) -> None:
    """Run a task to its end, or cancel it at SIGINT or SIGTERM. Raises what it raises."""
    trio.run(_until_signalled, work)


async def _until_signalled(work: Callable[[], Awaitable[None]]) -> None:
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:

        def cancel(_number: int, _frame: FrameType | None) -> None:
            token.run_sync_soon(scope.cancel)

        before = {number: signal.signal(number, cancel) for number in SIGNALS}
        try:
            await work()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
