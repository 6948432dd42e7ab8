"""The fan-out: one task that tells the send task of every hungry client that the log has grown."""

from typing import Final

import trio

from airy_trio.log.eventlog import EventLog
from airy_trio.log.tail import View
from airy_trio.websocket.subscriptions import Subscription

YIELD_EVERY: Final = 256
"""Readers served between two checkpoints."""


async def fan_out(eventlog: EventLog) -> None:
    """Wake whoever reads a view that grew or lost its past, for ever. The log's one consumer of growth."""
    while True:
        for view in await eventlog.wait_grown():
            await _wake_readers(view, eventlog.epoch)


async def _wake_readers(view: View, epoch: str) -> None:
    for count, reader in enumerate(tuple(view.readers), start=1):
        if not isinstance(reader, Subscription):
            continue
        if reader.hungry or reader.position.epoch != epoch:
            reader.client.wake()
        if count % YIELD_EVERY == 0:
            await trio.lowlevel.checkpoint()
