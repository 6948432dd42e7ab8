"""Whether this server is ready: listener, feed, store, triggers and lag, each with a reason.

Most conditions are read from the long-lived objects on each request. Only the triggers need a query on the database. A
task runs it every ``TRIGGERS_PERIOD_S``, so that a probe never waits for a database.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
import trio
from attrs import define, field, frozen

from airy_trio.errors import AiryTrioError
from airy_trio.log.event_log import EventLog
from airy_trio.log.recorder import Recorder
from airy_trio.retry import Outage

logger = structlog.get_logger(__name__)

TRIGGERS_PERIOD_S: Final = 5.0
"""Between two checks of the triggers."""
TRIGGERS_TIMEOUT_S: Final = 5.0
CHANGE_PERIOD_S: Final = 1.0
"""Between two checks of all parts, for the log."""
START_WAIT_S: Final = 1.0
"""A start that waits longer than this is logged."""


@frozen
class Condition:
    """The state of one part. ``reason``: one line, also if the part is well."""

    well: bool
    reason: str


IN_PLACE: Final = Condition(well=True, reason="in place")
NOT_OPEN: Final = Condition(well=False, reason="the port for clients is not open yet")


class Starting:
    """The only condition of a server until it has started: what the start waits for. ``run`` is a task."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._reason = ""
        self._finished = False

    def conditions(self) -> Mapping[str, Condition]:
        """Return the condition. Never waits."""
        reason = "this server is starting" if self._what is None else f"waiting for {self._what}: {self._reason}"
        return {"start": Condition(well=False, reason=reason)}

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Note that the start waits for ``what`` in this block."""
        self._what, self._reason = what, "no answer yet; another transaction may hold a lock"
        try:
            yield
        finally:
            self._what = None

    def failed(self, reason: str, what: str) -> None:
        """Note why the last attempt failed, and what the start waits for now."""
        self._reason, self._what = reason, what

    def finish(self) -> None:
        """Note that the server has started."""
        self._finished = True

    async def run(self) -> None:
        """Log each thing once that the start waits for longer than ``START_WAIT_S``. Returns when it has finished."""
        logged: set[str | None] = {None}
        while not self._finished:
            what = self._what
            await trio.sleep(START_WAIT_S)
            if self._what == what and what not in logged:
                logger.warning("start waits; it continues when this answers", waits_for=what, reason=self._reason)
                logged.add(what)


@define(eq=False)
class Readiness:
    """The conditions of one server. ``run`` is a task.

    ``faults`` checks the mapped tables and their triggers in the database and returns a line for each fault; it may
    raise ``AiryTrioError``. ``watched`` is the name of this part, which differs if there are no triggers.
    ``lag_max_s``: the largest lag of the recorder behind the changes, and of this server behind the event store.
    """

    _recorder: Recorder
    _log: EventLog
    _faults: Callable[[], Awaitable[Sequence[str]]]
    _watched: str = field(default="triggers", kw_only=True)
    _lag_max_s: float = field(kw_only=True)
    _triggers: Condition = field(default=IN_PLACE, init=False)  # they were checked before the start
    _listener: Condition = field(default=NOT_OPEN, init=False)
    _outages: dict[str, Outage] = field(factory=dict, init=False)

    def conditions(self) -> Mapping[str, Condition]:
        """Return the condition of each part. Never waits."""
        on_time = f"at most {self._lag_max_s} s behind"
        return {
            "listener": self._listener,
            "feed": self._feed(),
            "store": self._store(),
            self._watched: self._triggers,
            "lag": self._late("changes have waited to be recorded", self._recorder.lag_s, on_time),
        }

    def listen(self) -> None:
        """Note that clients can connect."""
        self._listener = Condition(well=True, reason="clients can connect")

    def record_only(self) -> None:
        """Note that this process does not serve clients."""
        self._listener = Condition(well=True, reason="this process records; the workers listen")

    def stop(self) -> None:
        """Note the shutdown: load balancers must send no more clients."""
        self._listener = Condition(well=False, reason="this server is shutting down")

    async def run(self) -> None:
        """Check the triggers regularly, and log each part that becomes not ready or ready again. Until cancelled."""
        check_at = trio.current_time() + TRIGGERS_PERIOD_S
        while True:
            await trio.sleep(CHANGE_PERIOD_S)
            if trio.current_time() >= check_at:
                self._triggers = await self._check_triggers()
                check_at = trio.current_time() + TRIGGERS_PERIOD_S
            for part, condition in self.conditions().items():
                if part not in self._outages:
                    self._outages[part] = Outage(logger.bind(part=part), "not ready", "ready again")
                if condition.well:
                    self._outages[part].end()
                else:
                    self._outages[part].begin(condition.reason)

    def _feed(self) -> Condition:
        if self._recorder.recording:
            return Condition(well=True, reason="this server records")
        if self._recorder.interruption is not None:
            return Condition(well=False, reason=f"recording is interrupted: {self._recorder.interruption}")
        return Condition(well=True, reason="another server records, or this one is about to")

    def _store(self) -> Condition:
        if self._log.away is not None:
            return Condition(well=False, reason=f"the event store cannot be read: {self._log.away}")
        lag_s = self._log.follow_lag_s
        return self._late("events in the store have waited to be read", lag_s, "the event store answers")

    def _late(self, waited: str, lag_s: float, on_time: str) -> Condition:
        if lag_s <= self._lag_max_s:
            return Condition(well=True, reason=on_time)
        return Condition(well=False, reason=f"{waited} for {lag_s:.1f} s ({self._lag_max_s} s are allowed)")

    async def _check_triggers(self) -> Condition:
        with trio.move_on_after(TRIGGERS_TIMEOUT_S):
            try:
                faults = await self._faults()
            except AiryTrioError as error:
                return Condition(well=False, reason=f"the database cannot be queried: {error}")
            return Condition(well=not faults, reason="; ".join(faults) or "in place")
        return Condition(well=False, reason=f"the database has not answered for {TRIGGERS_TIMEOUT_S} s")
