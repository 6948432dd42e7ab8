"""The long-lived objects of one server, made of its settings; who runs them is not known here."""

from attrs import frozen
from starlette.applications import Starlette

from airy_trio.admin import console, figures
from airy_trio.admin.door import Door
from airy_trio.admin.endpoints import application
from airy_trio.admin.metrics import Sources, registry
from airy_trio.admin.readiness import Readiness
from airy_trio.app.back_ends import BackEnds
from airy_trio.app.stores import OpenedStore, is_shareable
from airy_trio.log.deference import Deference
from airy_trio.log.eventlog import EventLog
from airy_trio.log.recorder import Recorder, RecorderOptions
from airy_trio.log.retention import Retention
from airy_trio.settings import Settings
from airy_trio.version import __version__
from airy_trio.websocket.auth import Authenticator
from airy_trio.websocket.origins import Console
from airy_trio.websocket.outlet_tls import Encryption
from airy_trio.websocket.sessions import Sessions


@frozen(kw_only=True)
class Parts:
    """The long-lived objects of one server. ``serves``: whether clients come to it; else it records only."""

    log: EventLog
    recorder: Recorder
    retention: Retention
    sessions: Sessions
    readiness: Readiness
    door: Door
    encryption: Encryption | None
    serves: bool = True

    def pages(self) -> Starlette:
        """What the admin port answers with."""
        sources = Sources(
            sessions=self.sessions,
            log=self.log,
            recorder=self.recorder,
            retention=self.retention,
            conditions=self.readiness.conditions,
        )
        pages = [*console.routes(self.door), *figures.routes(sources, self.door)]
        return application(self.readiness.conditions, registry(sources), self.sessions.audience, pages)


def make_parts(  # noqa: PLR0913 - all that is opened before them
    settings: Settings,
    back_ends: BackEnds,
    opened: OpenedStore,
    authenticator: Authenticator,
    encryption: Encryption | None,
    *,
    deference: Deference | None = None,
) -> Parts:
    """Make them; nothing is opened or started here."""
    log = EventLog(opened.store, settings.log)
    options = RecorderOptions(
        batch_rows_max=settings.changes.batch_rows_max,
        body_bytes_max=settings.listener.message_bytes_max,
        events=settings.events,
        store=opened.words,
        shareable=is_shareable(settings),
    )
    recorder = Recorder(back_ends.feed, back_ends.lease(lambda: log.epoch), log, options, deference=deference)
    return Parts(
        log=log,
        recorder=recorder,
        retention=Retention(opened.store, back_ends.feed, recorder, settings.log),
        sessions=Sessions(
            log,
            settings.listener,
            settings.replay,
            authenticator,
            server=f"airy-trio/{__version__}",
            console=Console(settings.admin.host, settings.admin.ports(settings.listener.processes)),
        ),
        readiness=Readiness(
            recorder, log, back_ends.faults, watched=back_ends.watched, lag_max_s=settings.admin.lag_max_s
        ),
        door=Door(
            settings.admin.websocket_url,
            host=settings.listener.host,
            port=settings.listener.port,
            path=settings.listener.path,
            tls=encryption is not None,
            token=settings.auth.mode != "none" and not settings.auth.cookie,  # which a browser sends by itself
        ),
        encryption=encryption,
    )
