"""Whether this server can do what it is for: listener, feed, store, triggers and lag, each with its reason in words.

What the long-lived objects know is asked when somebody wants to know it. Only the triggers need a question to the
database: a task of its own asks it now and then, so that no probe ever waits for a database. Knows no HTTP.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
import trio
from attrs import frozen

from airy_trio.errors import AiryTrioError
from airy_trio.log.event_log import EventLog
from airy_trio.log.recorder import Recorder

logger = structlog.get_logger(__name__)

TRIGGERS_PERIOD_S: Final = 5.0
"""Between two looks at the triggers."""
TRIGGERS_TIMEOUT_S: Final = 5.0
CHANGE_PERIOD_S: Final = 1.0
"""Between two looks at all parts, whose changes are logged."""
START_WAIT_S: Final = 1.0
"""A start that waits for longer logs what it waits for."""


@frozen
class Condition:
    """How one part is. ``reason``: one line in plain words, also where it is well."""

    well: bool
    reason: str


class Starting:
    """What the start of a server waits for: its only condition until it has started. ``run`` is a task."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._reason = ""
        self._finished = False

    def conditions(self) -> Mapping[str, Condition]:
        """The condition now. Never waits."""
        reason = "this server is starting" if self._what is None else f"waiting for {self._what}: {self._reason}"
        return {"start": Condition(well=False, reason=reason)}

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Note what the start waits for in this block."""
        self._what, self._reason = what, "no answer yet, as while another transaction holds a lock"
        try:
            yield
        finally:
            self._what = None

    def failed(self, reason: str) -> None:
        """Note why it is tried again."""
        self._reason = reason

    def finish(self) -> None:
        """Note that the server has started."""
        self._finished = True

    async def run(self) -> None:
        """Log what the start waits for, once for each, if that takes long. Returns when the server has started."""
        logged: set[str | None] = {None}
        while not self._finished:
            what = self._what
            await trio.sleep(START_WAIT_S)
            if self._what == what and what not in logged:
                logger.warning("start waits; it continues when this answers", waits_for=what, reason=self._reason)
                logged.add(what)


class Readiness:
    """The conditions of one server. ``run`` is a task.

    ``faults``: asks the database what is wrong with the mapped tables and their triggers, a line for each fault; may
    raise ``AiryTrioError``. ``watched``: what that is called where there are no triggers. ``lag_max_s``: from which
    lag on the recorder counts as behind, and this server behind the event store.
    """

    def __init__(
        self,
        recorder: Recorder,
        log: EventLog,
        faults: Callable[[], Awaitable[Sequence[str]]],
        *,
        watched: str = "triggers",
        lag_max_s: float,
    ) -> None:
        self._recorder = recorder
        self._log = log
        self._faults = faults
        self._watched = watched
        self._lag_max_s = lag_max_s
        self._triggers = Condition(well=True, reason="in place")  # they were looked at before anything was started
        self._listener = Condition(well=False, reason="the port for clients is not open yet")

    def conditions(self) -> Mapping[str, Condition]:
        """Each part's condition now. Never waits."""
        return {
            "listener": self._listener,
            "feed": self._feed(),
            "store": self._store(),
            self._watched: self._triggers,
            "lag": self._lag(),
        }

    def listen(self) -> None:
        """Take note that clients can connect."""
        self._listener = Condition(well=True, reason="clients can connect")

    def record_only(self) -> None:
        """Take note that clients do not come here."""
        self._listener = Condition(well=True, reason="this process records; the workers listen")

    def stop(self) -> None:
        """Take note that clients are sent away: nobody is to be sent here any more."""
        self._listener = Condition(well=False, reason="this server is being stopped")

    async def run(self) -> None:
        """Look at the triggers now and then, and log what becomes unwell and well again; for ever."""
        told: Mapping[str, Condition] = {}
        look_at = trio.current_time() + TRIGGERS_PERIOD_S
        while True:
            await trio.sleep(CHANGE_PERIOD_S)
            if trio.current_time() >= look_at:
                self._triggers = await self._look_at_triggers()
                look_at = trio.current_time() + TRIGGERS_PERIOD_S
            now = self.conditions()
            _tell_changes(told, now)
            told = now

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
        if lag_s > self._lag_max_s:
            behind = f"events in the store have waited to be read for {lag_s:.1f} s"
            return Condition(well=False, reason=f"{behind} ({self._lag_max_s} s are allowed)")
        return Condition(well=True, reason="the event store answers")

    def _lag(self) -> Condition:
        lag_s = self._recorder.lag_s
        if lag_s > self._lag_max_s:
            behind = f"changes have waited to be recorded for {lag_s:.1f} s"
            return Condition(well=False, reason=f"{behind} ({self._lag_max_s} s are allowed)")
        return Condition(well=True, reason=f"at most {self._lag_max_s} s behind")

    async def _look_at_triggers(self) -> Condition:
        with trio.move_on_after(TRIGGERS_TIMEOUT_S):
            try:
                faults = await self._faults()
            except AiryTrioError as error:
                return Condition(well=False, reason=f"the database cannot be asked: {error}")
            return Condition(well=not faults, reason="; ".join(faults) or "in place")
        return Condition(well=False, reason=f"the database has not answered for {TRIGGERS_TIMEOUT_S} s")


def _tell_changes(before: Mapping[str, Condition], now: Mapping[str, Condition]) -> None:
    for part, condition in now.items():
        was_well = before[part].well if part in before else True
        if was_well and not condition.well:
            logger.warning("not ready", part=part, reason=condition.reason)
        elif condition.well and not was_well:
            logger.info("ready again", part=part)
