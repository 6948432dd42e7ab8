"""What SIGHUP renews while the server runs: credentials and certificate, from the settings as they are then.

All of it or nothing: a file with a fault is told in one line of the log, and what was, stays. Everything else in the
settings counts from the next start on; which of it has changed is told.
"""

import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
import trio
from attrs import evolve, fields

from airy_trio.errors import FaultsError, StartError
from airy_trio.settings import Settings
from airy_trio.websocket import certificate
from airy_trio.websocket.auth import Key, load_file_keys
from airy_trio.websocket.certificate import Certificate
from airy_trio.websocket.listener import ListenerOptions
from airy_trio.websocket.outlet_tls import Encryption
from airy_trio.websocket.sessions import Sessions

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
        found, new, file_keys = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)  # a mount may hang
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
    return certificate.load(options.tls_certificate, options.tls_key) if options.tls_certificate else None


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
