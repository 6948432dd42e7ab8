"""``airy-trio verify``: the loss certificate, made on the user's own database, beside whatever runs there.

A scratch place of its own (``postgres``, ``sqlite``), an application that writes to it under adverse conditions
(``load``), the whole server in this process, and a client over a real WebSocket. What was committed is compared with
what was received (``ledger``); what remains in the scratch table at the end is the truth.
"""

import json
import time
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
import trio

from airy_trio import app, migrate
from airy_trio.database import SQLITE
from airy_trio.errors import StartError
from airy_trio.settings import Settings
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient, connect
from airy_trio.verify.ledger import GONE, Change, Ledger, LossCertificate
from airy_trio.verify.load import END, Load
from airy_trio.verify.scratch import DRIVER_ERRORS, Scratch, postgres_scratch, sqlite_scratch

__all__ = ["LossCertificate", "verify"]

END_S: Final = 20.0
"""How long the last events are waited for, once the load has ended."""
STOP_S: Final = 12.0

Progress = Callable[[float], None]
"""Is told now and then how many seconds have gone."""


def verify(settings: Settings, seconds: float, progress: Progress) -> LossCertificate | None:
    """Verify for about ``seconds`` and give the certificate; None where a signal came first. Leaves nothing behind.

    Raises ``AiryTrioError`` where it cannot be done here.
    """
    if settings.changes.capture != "triggers":
        raise StartError(['changes.capture: verify is about "triggers"; what the other way cannot see is known'])
    ledger = Ledger()
    dialect = sa.make_url(settings.database.url).get_backend_name()
    place = sqlite_scratch if dialect == SQLITE else postgres_scratch
    with place(settings) as scratch:
        migrate.migrate(scratch.settings)
        run = _Run(scratch, ledger, seconds, progress)
        trio.run(app.run, scratch.settings, run.beside)
        return ledger.certificate(_rows(scratch)) if run.finished else None


class _Run:
    """The part that runs beside the server."""

    def __init__(self, scratch: Scratch, ledger: Ledger, seconds: float, progress: Progress) -> None:
        self._ledger = ledger
        self._seconds = seconds
        self._progress = progress
        self._load = Load(scratch, ledger, seconds)
        self.finished = False

    async def beside(self, address: app.Address) -> None:
        async with await connect(address.host, address.port, address.path) as client:
            await client.subscribe()
            begun_at = time.monotonic()
            self._load.start()
            try:
                with trio.move_on_after(self._seconds + END_S):
                    await self._receive(client, begun_at)
                self.finished = True
            finally:
                with trio.move_on_after(STOP_S, shield=True):
                    await trio.to_thread.run_sync(self._load.stop)
        if self._load.failure is not None:
            raise StartError([f"database: the last change could not be written: {self._load.failure}"])

    async def _receive(self, client: StompClient, begun_at: float) -> None:
        """Up to the end of the load."""
        while True:
            try:
                frame = await client.receive()
            except Closed as closed:
                raise StartError([f"the server has closed the connection: {closed}"]) from None
            if frame.command != "MESSAGE":
                raise StartError([f"the server has ended the connection: {frame.get('message')}"])
            now = time.monotonic()
            offset, change = _event(frame)
            if change[0] == END:
                return
            self._ledger.received(offset, change, now)
            self._progress(now - begun_at)


def _event(frame: Frame) -> tuple[int, Change]:
    told: dict[str, Any] = json.loads(frame.body)
    version = GONE if told["type"] == "tag.deleted" else int(told["payload"]["name"])
    return int((frame.get("message-id") or "").rpartition("-")[2]), (told["payload"]["id"], version)


def _rows(scratch: Scratch) -> dict[str, int]:
    try:
        connection = scratch.connect(spared=True)
        try:
            found = connection.execute(scratch.everything)
        finally:
            connection.close()
    except DRIVER_ERRORS as error:
        raise StartError([f"database: the table cannot be read at the end: {type(error).__name__}"]) from None
    return {id_: int(version) for id_, version in found if id_ != END}
