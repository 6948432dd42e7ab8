"""airy-trio's delivery in one process: a log in memory, sessions, a listener, and a producer at a given pace.

The same parts, started in the same way, as in ``airy_trio.app``, without a database. Prints its port; ends when its
standard input does.
"""

import gc
import logging
import os
import socket
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio
import trio.testing

from airy_trio import app, settings
from airy_trio.app import server
from airy_trio.app.server import open_encryption
from airy_trio.auth.authenticator import Authenticator
from airy_trio.auth.users import AuthOptions
from airy_trio.delivery.client import ReplayOptions
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.store import NewEvent
from airy_trio.sessions.conversation import Services
from airy_trio.sessions.listener import ListenerOptions, accept, open_listening_socket
from airy_trio.sessions.session import Sessions
from airy_trio.websocket.tls import Encryption
from bench.pace import READ_BYTES, Pace, Progress
from bench.payload import body

TICK_S: Final = 0.001
TRIM_EVERY_EVENTS: Final = 1000
TRIM_EVENTS_MAX: Final = 1_000_000
_MANY: Final = 1_000_000
_CONNECTION_LIMITS: Final = ("connections_max", "connections_per_address_max")


class Producer:
    """Appends events to a log at a pace, and trims the store to the size of the tail."""

    def __init__(self, log: EventLog, pace: Pace, *, conversations: int, keep_events: int) -> None:
        self.log = log
        self._pace = pace
        self._conversations = conversations
        self._keep_events = keep_events
        self._progress = Progress()
        self._reported = trio.Event()

    async def listen(self) -> None:
        """Read progress from standard input until its end."""
        async with trio.lowlevel.FdStream(os.dup(0)) as pipe:
            while not self._progress.ended:
                self._progress.update(bytes(await pipe.receive_some(READ_BYTES)))
                self._reported.set()

    async def produce(self) -> None:
        """Append until the end of progress."""
        produced, trimmed = 0, 0
        while not self._progress.begun and not self._progress.ended:
            await self._next_report()
        start = trio.current_time()
        while not self._progress.ended:
            due = self._pace.due(produced, self._progress.reached, trio.current_time() - start)
            if not due:
                await self._wait(start, produced)
                continue
            await self._append(produced + 1, due)
            produced += due
            if self._pace.alone:
                await trio.testing.wait_all_tasks_blocked()
            if produced - trimmed >= TRIM_EVERY_EVENTS:
                await self.log.store.trim(age_s=3600, keep=self._keep_events, limit=TRIM_EVENTS_MAX, unused_s=10**6)
                trimmed = produced

    async def _append(self, first: int, count: int) -> None:
        numbers = range(first, first + count)
        await self.log.append(self.log.head, [self._event(number) for number in numbers], "")

    def _event(self, number: int) -> NewEvent:
        return NewEvent(
            type="message.updated",
            object=f"message:m{number}",
            conversation_id=f"c{(number - 1) % self._conversations}",
            channel_id="ch1",
            body=body(number, self._conversations).encode(),
        )

    async def _wait(self, start: float, produced: int) -> None:
        if self._pace.rate:
            await trio.sleep_until(max(start + (produced + 1) / self._pace.rate, trio.current_time() + TICK_S / 2))
        else:
            await self._next_report()

    async def _next_report(self) -> None:
        await self._reported.wait()
        self._reported = trio.Event()


async def serve(
    producer: Producer,
    listening: socket.socket,
    sessions: Sessions,
    *,
    second_server: Path | None,
    encryption: Encryption | None,
) -> None:
    """Run the tasks of the server until the producer has ended.

    ``second_server``: the settings of a complete second server in this process, whose recorder works at the same time.
    """
    async with trio.open_nursery() as connections, trio.open_nursery() as intake:
        if second_server is not None:
            await intake.start(app.serve, settings.load(second_server, os.environ))
        intake.start_soon(producer.log.follow)
        intake.start_soon(sessions.fan_out, connections)
        intake.start_soon(sessions.wheel.run)
        intake.start_soon(accept, listening, sessions, connections, encryption)
        intake.start_soon(producer.listen)
        server.freeze_heap()
        print(listening.getsockname()[1], flush=True)
        await producer.produce()
        intake.cancel_scope.cancel()
        connections.cancel_scope.cancel()


async def main() -> None:
    """Read the command line and serve."""
    parser = Pace.parser(__doc__)
    parser.add_argument("--conversations", type=int, default=1)
    parser.add_argument("--tail-events", type=int, default=LogOptions().tail_events)
    parser.add_argument("--tail-bytes", type=int, default=LogOptions().tail_bytes)
    parser.add_argument("--second-server", type=Path)
    parser.add_argument("--send-timeout-s", type=float, default=ListenerOptions().send_timeout_s)
    parser.add_argument("--no-collector", action="store_true", help="without Python's cycle collector")
    parser.add_argument("--tls-certificate", default="")
    parser.add_argument("--tls-key", default="")
    arguments = parser.parse_args()
    if arguments.no_collector:
        gc.disable()
    options = LogOptions(store="memory", tail_events=arguments.tail_events, tail_bytes=arguments.tail_bytes)
    log = EventLog(MemoryStore(), options)
    await log.open()
    listener = attrs.evolve(
        _listener_options(arguments.send_timeout_s),
        tls_certificate=arguments.tls_certificate,
        tls_key=arguments.tls_key,
    )
    authenticator = Authenticator(AuthOptions())
    sessions = Sessions(Services(log, listener, ReplayOptions(), authenticator, server="airy-trio/bench"))
    producer = Producer(
        log, Pace.of(arguments), conversations=arguments.conversations, keep_events=arguments.tail_events
    )
    with await open_listening_socket(listener) as listening:
        encryption = await open_encryption(listener)
        await serve(producer, listening, sessions, second_server=arguments.second_server, encryption=encryption)


def _listener_options(send_timeout_s: float) -> ListenerOptions:
    """Return options for any free port, without a limit for one address, which all clients have here."""
    known = attrs.fields_dict(ListenerOptions)
    limits: dict[str, Any] = {name: _MANY for name in _CONNECTION_LIMITS if name in known}
    return ListenerOptions(port=0, send_timeout_s=send_timeout_s, **limits)


def _prepare_process() -> None:
    """Prepare the process as the server does at its start."""
    _log_as_deployed()
    server.prepare_process()


def _log_as_deployed() -> None:
    """Log at the default level, as JSON, to /dev/null: writing a line for each connection is part of the work."""
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _show_warning,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(nowhere),
        cache_logger_on_first_use=True,
    )


def _show_warning(_logger: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401 - structlog's own type
    if level != "info":
        print(dict(event), file=sys.stderr)
    return event


if __name__ == "__main__":
    _prepare_process()
    trio.run(main)
