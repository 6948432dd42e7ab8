"""The server put together: its parts made, started in order, and the whole nursery tree in one function.

``serve`` is for other programs, ``run`` for the command line; both run ``serve_process``, which has this tree::

    serve_process()
      port                         outermost: the admin port, which reports what the start waits for, and the shutdown
      connections                  sessions and their send tasks, with a deadline at shutdown; what acknowledges durable
                                   subscriptions, to the end
      intake                       innermost: recorder and its read-ahead, tail of the store, retention,
                                   readiness; in a process that serves: fan-out, wheel, accept loop, renewal. Cancelled
                                   first at shutdown, and whatever breaks in it ends the server loudly

What SIGHUP renews while the server runs: credentials and certificate, from the settings as they are then.

All of it or nothing: a file with a fault is told in one line of the log, and what was, stays. Everything else in the
settings counts from the next start on; which of it has changed is told.

What a server needs of its own process: as many files as it may have, and a collector that is patient.

For ``run``, the program; ``serve`` inside somebody else's program leaves that process as it is.
"""

import contextlib
import gc
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio
from attrs import evolve, fields, frozen
from starlette.types import ASGIApp, Receive, Scope, Send

from airy_trio import migrate
from airy_trio.admin import server as admin
from airy_trio.admin.endpoints import starting_application
from airy_trio.admin.readiness import Starting
from airy_trio.app.build import Parts, make_parts, open_back_ends, opened_store, patiently
from airy_trio.auth import Authenticator, Key, load_file_keys
from airy_trio.database import DatabaseError
from airy_trio.delivery.disconnects import INTERNAL
from airy_trio.errors import FaultsError, SettingsError, StartError, told_error
from airy_trio.log.leadership import LeaderPreference
from airy_trio.log.recorder import Recorder
from airy_trio.log.store import StoreReplaced
from airy_trio.sessions.listener import ListenerOptions, accept, open_listening_socket, within_files
from airy_trio.sessions.registry import Sessions
from airy_trio.settings import Settings
from airy_trio.version import __version__
from airy_trio.websocket import tls
from airy_trio.websocket.tls import Certificate, Encryption

logger = structlog.get_logger(__name__)

TLS_STAYS: Final = "listener.tls_certificate: TLS can be turned on and off only by a restart"


class Renewal:
    """Reads the settings again whenever it was asked to. ``reread`` blocks, and raises ``AiryTrioError``.

    Whatever else it raises is told as a fault as well, and ends nothing.

    ``ask`` may be called at any time, before ``run`` too; asked for twice, it is done once.
    """

    def __init__(self, reread: Callable[[], Settings]) -> None:
        self._reread = reread
        self._asked = trio.Event()

    def ask(self) -> None:
        """Have the settings read again soon."""
        self._asked.set()

    async def run(self, running: Settings, sessions: Sessions, encryption: Encryption | None) -> None:
        """Renew what the server that was started with ``running`` goes on with, for ever."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            try:
                await self._renew(running, sessions, encryption)
            except FaultsError as error:
                logger.error("settings not renewed", faults=error.faults)  # noqa: TRY400 - no traceback for a person
            except Exception as error:  # noqa: BLE001 - beyond this the server would end, for a wish about its settings
                logger.error("settings not renewed", faults=(_unexpected(error),))  # noqa: TRY400 - as above

    async def _renew(self, running: Settings, sessions: Sessions, encryption: Encryption | None) -> None:
        logger.info("reading settings")  # a mount may hang: then this line is the last one about it
        found, new, file_keys = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        if (new is None) != (encryption is None):
            raise StartError([TLS_STAYS])
        sessions.renew(found.auth, file_keys)
        if encryption is not None and new is not None:
            encryption.context = new.context
            tell(new)
        logger.info("settings renewed", only_after_a_restart=list(_waiting(running, found)))

    def _read(self) -> tuple[Settings, Certificate | None, tuple[Key, ...] | None]:
        """Read all files: the settings, then the certificate and the keys that they name. Blocks."""
        found = self._reread()
        return found, certificate_of(found.listener), load_file_keys(found.auth)


async def open_encryption(options: ListenerOptions) -> Encryption | None:
    """What connections are encrypted with from the start; None: they are not. Raises ``StartError``."""
    found = await trio.to_thread.run_sync(certificate_of, options, abandon_on_cancel=True)
    if found is None:
        return None
    tell(found)
    return Encryption(found.context)


def certificate_of(options: ListenerOptions) -> Certificate | None:
    """Read the certificate that the settings name, if they do. Blocks. Raises ``StartError``."""
    return tls.load(options.tls_certificate, options.tls_key) if options.tls_certificate else None


def tell(found: Certificate) -> None:
    """Log what clients are shown from now on, and why they may refuse it."""
    now = datetime.now(UTC)
    logger.info("certificate", names=found.names, days_left=found.days_left(now))
    for warning in found.warnings(now):
        logger.warning(warning)


def _unexpected(error: Exception) -> str:
    """What an error that nothing explains is, and where it was raised; its own words may quote a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"an error of the program: {type(error).__name__}, at {Path(frames[-1].filename).name}:{frames[-1].lineno}"


def _waiting(running: Settings, found: Settings) -> Iterator[str]:
    """The sections in which something has changed that is not renewed."""
    listener = evolve(
        found.listener, tls_certificate=running.listener.tls_certificate, tls_key=running.listener.tls_key
    )
    found = evolve(found, listener=listener, auth=running.auth)
    return (each.name for each in fields(Settings) if getattr(found, each.name) != getattr(running, each.name))


GC_THRESHOLDS: Final = (5_000, 200, 100)
"""Python's own let the collector walk over all connections while they come in: 1754 against 2497 of them a second.

What a few dozen new ones have made is still in the processor's cache when it walks over that, which takes a millisecond
or two; over what hundreds have made it took twenty at once, in which no event is sent. Older objects are walked over
after a million new ones.
"""
SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread of the recorder waits for the interpreter while clients keep it busy, each time it comes back from
the database: with Python's own 5 ms a crowd of hostile clients doubles the p99 from commit to client."""
_OPEN_MAX: Final = 10_240
"""What macOS grants at least, where its hard limit says "unlimited" and means less."""


def prepare() -> None:
    """Raise the soft limit of open files to the hard one; set the collector's thresholds and the switch interval."""
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _raise_file_limit()


def freeze() -> None:
    """Let the collector pass over everything that the start has made, for good."""
    gc.collect()
    gc.freeze()


def _raise_file_limit() -> None:
    """Raise it as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for files in (hard, max(soft, _OPEN_MAX)):
        if files == soft:
            break
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            break


FLUSH_TIMEOUT_S: Final = 5.0


@frozen(kw_only=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    path: str
    tls: bool = False

    @property
    def url(self) -> str:
        """The WebSocket URL for a client on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.tls else 'ws'}://{host}:{self.port}{self.path}"


async def run(
    settings: Settings,
    companion: Callable[[Address], Awaitable[None]] | None = None,
    *,
    reread: Callable[[], Settings] | None = None,
    worker: int | None = None,
    deference: LeaderPreference | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down gracefully; a second signal, or one during the start, ends at once.

    ``companion`` starts once the server listens; when it returns, the server shuts down. ``reread`` reads the settings
    again on SIGHUP (``renewal``); without it SIGHUP, which a closing terminal sends, shuts down too. ``worker``,
    ``deference``: see ``serve_process``. Raises ``AiryTrioError`` if the server cannot start or cannot go on.
    """
    stopping, company = trio.Event(), trio.CancelScope()
    renewal = None if reread is None else Renewal(reread)
    listening = False
    prepare()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        try:
            async with trio.open_nursery() as signalled:

                async def stop_when_told() -> None:
                    async for number in signals:
                        if number == signal.SIGHUP and renewal is not None:
                            renewal.ask()
                            continue
                        logger.info("stopping", signal=signal.Signals(number).name)
                        if stopping.is_set() or not listening:
                            signalled.cancel_scope.cancel()
                        stopping.set()
                        company.cancel()

                signalled.start_soon(stop_when_told)
                async with trio.open_nursery() as serving:
                    server = partial(
                        serve_process,
                        settings,
                        stopping=stopping,
                        renewal=renewal,
                        worker=worker,
                        deference=deference,
                    )
                    address = await serving.start(server)
                    listening = True
                    freeze()
                    if companion is not None:
                        with company:
                            await companion(address)
                        stopping.set()
                signalled.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise told_error(group) from None


async def serve(  # noqa: ASYNC128 - _serve reports that it has started
    settings: Settings,
    *,
    stopping: trio.Event | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the server: ``await nursery.start(serve, settings)`` returns its ``Address`` once it listens.

    For a graceful shutdown set ``stopping``: clients are notified and have ``drain_s`` to reconnect elsewhere.
    Cancelling ends the server at once. It is one process: ``[listener] workers`` must be 1.

    Resource handling: everything that it opened is closed on return. Raises ``AiryTrioError`` if it cannot start or
    cannot go on.
    """
    await serve_process(settings, stopping=stopping, task_status=task_status)


async def serve_process(  # noqa: ASYNC114, ASYNC128, PLR0913 - as above; all that the command line passes
    settings: Settings,
    *,
    stopping: trio.Event | None = None,
    renewal: Renewal | None = None,
    worker: int | None = None,
    deference: LeaderPreference | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run one of the server processes of a command; ``stopping``, ``task_status`` and errors: see ``serve``.

    ``renewal`` reads credentials and certificate again on request. ``worker`` is the number of this process among
    ``[listener] workers``, from 0; its admin port is ``[admin] port`` + ``worker``. The number after the last worker is
    the process that records and does not listen. None: there is only this process. ``deference`` decides whether this
    process leaves recording to another one.
    """
    if worker is None and settings.listener.workers > 1:
        remedy = "set it to 1, or start the workers with the airy-trio command"
        raise SettingsError([f"listener.workers is {settings.listener.workers}, but serve() is one process; {remedy}"])
    worker = 0 if worker is None else worker
    # First, because the settings may name files that cannot be used.
    file_keys = await trio.to_thread.run_sync(load_file_keys, settings.auth, abandon_on_cancel=True)
    authenticator = Authenticator(settings.auth, file_keys)
    encryption = await open_encryption(settings.listener)
    starting = Starting()
    pages = _Pages(starting_application(starting.conditions))
    try:
        async with trio.open_nursery() as port:
            port.start_soon(admin.serve, await admin.open_listeners(settings.admin, worker), pages)
            port.start_soon(starting.run)
            if settings.database.migrate:
                with starting.waiting_for("the database (database.url) to be migrated"):
                    await trio.to_thread.run_sync(migrate.migrate, settings, abandon_on_cancel=True)
            back_ends = await open_back_ends(settings, starting)
            try:
                async with opened_store(settings, starting=starting) as opened:
                    fitting = evolve(settings, listener=within_files(settings.listener))
                    made = make_parts(fitting, back_ends, opened, authenticator, encryption, deference=deference)
                    parts = evolve(made, serves=worker != settings.listener.recorder)
                    await _serve(
                        settings,
                        parts,
                        renewal,
                        trio.Event() if stopping is None else stopping,
                        _Start(status=task_status, starting=starting, pages=pages),
                    )
            finally:
                await back_ends.aclose()
            port.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise told_error(group) from None


class _Pages:
    """The application of the admin port, which is another one once the server has started."""

    def __init__(self, current: ASGIApp) -> None:
        self.current = current

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.current(scope, receive, send)


@frozen(kw_only=True)
class _Start:
    """Reports that the server has started."""

    status: trio.TaskStatus[Address]
    starting: Starting
    pages: _Pages


async def _serve(
    settings: Settings, parts: Parts, renewal: Renewal | None, stopping: trio.Event, start: _Start
) -> None:
    log, recorder, sessions, readiness = parts.log, parts.recorder, parts.sessions, parts.readiness
    await patiently(log.open, settings.database, "log.url", start.starting)
    with contextlib.ExitStack() as sockets:
        broken: ExceptionGroup[Exception] | None = None
        async with trio.open_nursery() as connections:
            connections.start_soon(sessions.durables.run)
            try:
                async with trio.open_nursery() as intake:
                    intake.start_soon(recorder.ahead.run)
                    recording = partial(intake.start, recorder.run)
                    await patiently(recording, settings.database, "database.url", start.starting)
                    intake.start_soon(log.follow)
                    intake.start_soon(log.watch_lag)
                    intake.start_soon(parts.retention.run)
                    intake.start_soon(readiness.run)
                    start.pages.current = parts.pages()
                    start.starting.finish()
                    if parts.serves:
                        intake.start_soon(sessions.fan_out)
                        intake.start_soon(sessions.wheel.turn)
                        intake.start_soon(sessions.follow_keys)
                        intake.start_soon(sessions.leave_unread_store, settings.listener.drain_s)
                        listening = sockets.enter_context(await open_listening_socket(settings.listener))
                        intake.start_soon(accept, listening, sessions, connections, parts.encryption)
                        if renewal is not None:
                            intake.start_soon(renewal.run, settings, sessions, parts.encryption)
                        start.status.started(_listening_at(listening, settings, parts))
                    else:
                        start.status.started(_recording_for(settings, parts))
                    await stopping.wait()
                    readiness.stop()  # first: who sends us traffic learns it before anybody is sent away
                    intake.cancel_scope.cancel()
            except ExceptionGroup as group:
                broken = group
            readiness.stop()
            sockets.close()  # who comes now is refused at once, and goes to another server
            if broken is not None:  # a server that reads no changes must not look like a quiet one
                await _disown_what_was_replaced(recorder, broken)
                await sessions.dismiss_all(0, INTERNAL)
                await sessions.durables.flush(FLUSH_TIMEOUT_S)
                raise broken
            await sessions.dismiss_all(settings.listener.drain_s)
            await sessions.durables.flush(FLUSH_TIMEOUT_S)
            connections.cancel_scope.cancel()
    logger.info("stopped", **recorder.statistics())


async def _disown_what_was_replaced(recorder: Recorder, broken: ExceptionGroup[Exception]) -> None:
    if broken.subgroup(StoreReplaced) is not None:
        try:
            await recorder.disown()
        except DatabaseError as error:
            logger.warning("the next start cannot be told that the event log was replaced", reason=str(error))


def _recording_for(settings: Settings, parts: Parts) -> Address:
    """Where the workers listen for which this process records."""
    parts.readiness.record_only()
    options = settings.listener
    return Address(host=options.host, port=options.port, path=options.path, tls=parts.encryption is not None)


def _listening_at(listening: socket.socket, settings: Settings, parts: Parts) -> Address:
    """Where the server listens now; it is told in the log too."""
    host, port = listening.getsockname()[:2]
    parts.door.opened(host, port)
    parts.readiness.listen()
    address = Address(host=host, port=port, path=settings.listener.path, tls=parts.encryption is not None)
    logger.info("listening", url=address.url, host=host, port=port, path=address.path, version=__version__)
    return address
