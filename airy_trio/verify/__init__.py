"""``airy-trio verify``: certify on the operator's own database that no change is lost.

Everything runs on tables of its own in that database (``scratch``), next to any server that is running there: writers
under adverse conditions, a complete server in this process, and a client over a real WebSocket. Now and then the
connection of a writer or of the recorder is terminated. The ledger (``writers``) compares committed changes with
received events; the rows in the scratch table at the end decide.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import sqlalchemy as sa
import trio
from sqlalchemy.exc import SQLAlchemyError

from airy_trio import app, migrate
from airy_trio.database import SQLITE
from airy_trio.errors import StartError
from airy_trio.settings import Settings
from airy_trio.testing.client import Closed, StompClient, connect
from airy_trio.verify.scratch import Scratch, postgres_scratch, sqlite_scratch
from airy_trio.verify.writers import Ledger, LossCertificate, Rhythm, Writer, change_of, transact_long

__all__ = ["LossCertificate", "verify"]

WRITERS: Final = 4
RHYTHM: Final = Rhythm(delay_max_s=0.01, rest_max_s=0.03)
"""With rests, because the load must not overload a database that is in use."""
LONG_SHARE: Final = 1 / 3
"""The share of the time for which the long transaction stays open."""
TERMINATE_PERIOD_S: Final = 0.7
RECORDER_EACH: Final = 3
"""Every third terminated connection is the recorder's, the others are writers'."""
JOIN_S: Final = 10.0
"""How long writers have to end. A thread that a lock keeps for longer is abandoned."""
END_S: Final = 20.0
"""How long to wait for the last events after the load has ended."""
END: Final = "the end"
"""The object that is written last."""

Progress = Callable[[float], None]
"""Receives the seconds since the load began, with each event."""


def verify(settings: Settings, seconds: float, progress: Progress) -> LossCertificate | None:
    """Verify for about ``seconds`` and return the certificate, or None if a signal interrupted it.

    Removes everything that it created. Raises ``AiryTrioError`` if verification is not possible on this database.
    """
    if settings.changes.capture != "triggers":
        raise StartError(['changes.capture: verify supports only "triggers"'])
    dialect = sa.make_url(settings.database.url).get_backend_name()
    make_scratch = sqlite_scratch if dialect == SQLITE else postgres_scratch
    with make_scratch(settings) as scratch:
        migrate.migrate(scratch.settings)
        run = _Run(scratch, seconds, progress)
        trio.run(app.run, scratch.settings, run.run)
        return run.certificate() if run.finished else None


class _Run:
    """The writers and the client, which run next to the server."""

    def __init__(self, scratch: Scratch, seconds: float, progress: Progress) -> None:
        self._scratch = scratch
        self._ledger = Ledger()
        self._seconds = seconds
        self._progress = progress
        self._over = threading.Event()
        self.finished = False

    async def run(self, address: app.Address) -> None:
        """Write and receive until the last event has arrived, or until ``END_S`` after the end of the load."""
        async with await connect(address.host, address.port, address.path) as client:
            await client.subscribe()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                with trio.move_on_after(self._seconds + END_S):
                    await self._receive(client)
                self.finished = True
                nursery.cancel_scope.cancel()

    def certificate(self) -> LossCertificate:
        """Compare the events with the table. Raises ``StartError`` if the table cannot be read."""
        try:
            rows = self._scratch.table.versions()
        except SQLAlchemyError as error:
            raise StartError([f"database: the table cannot be read at the end: {type(error).__name__}"]) from None
        rows.pop(END, None)
        return self._ledger.certificate(rows)

    async def _receive(self, client: StompClient) -> None:
        begun_at = time.monotonic()
        while True:
            try:
                frame = await client.receive()
            except Closed as closed:
                raise StartError([f"the server has closed the connection: {closed}"]) from None
            if frame.command != "MESSAGE":
                raise StartError([f"the server has ended the connection: {frame.get('message')}"])
            now = time.monotonic()
            change = change_of(frame.body)
            if change[0] == END:
                return
            offset = int((frame.get("message-id") or "").rpartition("-")[2])
            self._ledger.received(offset, change, now)
            self._progress(now - begun_at)

    async def _write(self) -> None:
        """Run the threads for the time of the load, then write ``END``. If cancelled, wait for them up to JOIN_S."""
        joining = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_threads, joining)
            try:
                await trio.sleep(self._seconds)
            finally:
                self._over.set()
                joining.deadline = trio.current_time() + JOIN_S
        await trio.to_thread.run_sync(self._write_end)

    async def _run_threads(self, joining: trio.CancelScope) -> None:
        works = [Writer(number, self._scratch.table, self._ledger, RHYTHM, self._over).run for number in range(WRITERS)]
        with joining:
            async with trio.open_nursery() as threads:
                for work in (*works, self._stay_open, self._terminate):
                    threads.start_soon(partial(trio.to_thread.run_sync, work, abandon_on_cancel=True))

    def _stay_open(self) -> None:
        seconds = min(self._seconds * LONG_SHARE, self._scratch.long_max_s)
        try:
            transact_long(self._scratch.table, self._ledger, self._over, seconds)
        except SQLAlchemyError:
            self._ledger.count("long failed")

    def _terminate(self) -> None:
        """Terminate a connection in the middle of its work now and then."""
        turn = 0
        while not self._over.wait(TERMINATE_PERIOD_S):
            turn += 1
            try:
                if turn % RECORDER_EACH == 0:
                    if self._scratch.terminate_recorder():
                        self._ledger.count("recorders terminated")
                elif self._scratch.terminate_writer():
                    self._ledger.count("writers terminated")
            except SQLAlchemyError:
                self._ledger.count("terminations failed")

    def _write_end(self) -> None:
        try:
            with self._scratch.table.session(named=False) as connection:
                self._scratch.table.change(connection, END)
        except SQLAlchemyError as error:
            raise StartError([f"database: the last change could not be written: {type(error).__name__}"]) from None
