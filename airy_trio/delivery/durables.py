"""The durable subscriptions that clients of this node hold: claimed from the store, acknowledged to it in batches.

One task, ``run``, does all that concerns the store, one step after the other: no claim is overtaken by an older one,
and what is noted while a step is under way goes into the next. Who waits for the task is given a ``Waiting``. Knows
nothing of frames.

Nodes share only the store, which knows the newest claim of each. An older one on another node learns of it when it
acknowledges next, at the latest ``LOOK_EVERY_S`` later: every held subscription is acknowledged that often anyway. So
the store sees that it is used, and on a quiet destination its position follows the log and does not expire. If events
are retained for a short time only, this happens more often (``LOOKS_WITHIN_RETENTION``). A subscription whose claim is
young is then claimed once more (``RECLAIM_WITHIN_S``).

One durable subscription while a client holds it: whether it may be, who holds it, and how far it has got.

Wire contract, "SUBSCRIBE". Reads what a subscription has in flight; asks no store, and writes nothing.

A step of the store for many durable subscriptions: where it refuses, whose fault it is shows in halves.

What it refuses of one ends that client's session, and the others, who have nothing to do with it, go on.

The names of durable subscriptions that each user has used lately on this node: so many, and no more.

The store keeps a row for each name until it was not used for ``[log] retain_durables_s``; a client that invents a name
each time would fill it. Each node counts the names that it has seen since its start. Its memory is bounded as well:
the user that came the longest ago is forgotten first. Independent of store and clock.
"""

import math
import secrets
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Final, TypeVar

import structlog
import trio
from attrs import define, field

from airy_trio.auth import User
from airy_trio.delivery.client import Subscription
from airy_trio.delivery.disconnects import TAKEN_OVER, DisconnectReason, reason_after, with_token
from airy_trio.delivery.start import backoff_s
from airy_trio.log.event_log import EventLog
from airy_trio.log.position import Position
from airy_trio.log.store import Acknowledgement, Claim, EventStore, StoreUnavailable
from airy_trio.stomp.requests import AckMode, Subscribe

NAME_CHARS_MAX: Final = 128

Key = tuple[str, str]
"""Owner and name."""


@define(eq=False)
class Waiting:
    """For who waits until the store has been asked: ``scope`` is cancelled then, and ``done`` is true."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    done: bool = False

    async def wait(self, pause: Callable[[float], Awaitable[object]]) -> None:
        """Return once it is done. ``pause``: see ``Conversation``."""
        with self.scope:
            await pause(math.inf)

    def finish(self) -> None:
        """It is done."""
        self.done = True
        self.scope.cancel()


@define(eq=False)
class DurableClaim:
    """One durable subscription as it is held by a subscription of a client.

    ``claimed``: the store knows that it is. ``position``: what the store keeps, as far as is known. ``started``:
    where the subscription starts has been decided, so that there is something to acknowledge. ``released``: where the
    subscription had got when it ended. ``reclaim_until``: until when it is claimed again if another server takes it
    over (Trio's time).
    """

    subscription: Subscription
    claim: Claim
    claimed: Waiting = field(factory=Waiting)
    position: Position | None = None
    started: bool = False
    released: Position | None = None
    reclaim_until: float = -math.inf

    @property
    def key(self) -> Key:
        """Owner and name."""
        return self.claim.owner, self.claim.name


def refusal(request: Subscribe, user: User) -> DisconnectReason | None:
    """Say why a SUBSCRIBE with ``durable`` cannot be; None where it can (wire contract, "SUBSCRIBE")."""
    name = request.durable or ""
    if user.name is None:
        token, prose = "403-durable-needs-auth", "A durable subscription needs a user, and this client has none."
    elif request.ack is AckMode.AUTO:
        token, prose = "400-durable-needs-ack", "A durable subscription needs the ack mode client or client-individual."
    elif not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        token, prose = (
            "400-bad-durable",
            f"The durable header is not 1 to {NAME_CHARS_MAX} printable characters.",
        )
    else:
        return None
    return with_token(token, prose, receipt_id=request.receipt)


def settled(subscription: Subscription, head: Position) -> Position:
    """The position up to which nothing has to be sent, or sent again: below the first that is not acknowledged.

    ``head``: of the log. Where all is acknowledged that there is, a subscription has got as far as that.
    """
    position, window = subscription.position, subscription.window
    oldest = None if window is None else window.oldest
    if oldest is None and subscription.owed:
        oldest = subscription.owed[0].offset
    if oldest is not None:
        return position.at(oldest - 1)
    if position.epoch == head.epoch and subscription.view.last <= position.offset:
        return max(position, head)
    return position


T = TypeVar("T")


async def keep(store: EventStore, new: Sequence[tuple[DurableClaim, Position]]) -> Sequence[Claim]:
    """Write positions, and return the claims that were replaced. Raises ``StoreUnavailable``."""
    try:
        return await store.acknowledge([Acknowledgement(hold.claim, at) for hold, at in new])
    except StoreUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - the others on this node have nothing to do with it
        fault = error
    if len(new) == 1:
        _dismiss(new[0][0], fault)
        return []
    return [lost for half in _halves(new) for lost in await keep(store, half)]


async def held(store: EventStore, claims: Sequence[DurableClaim]) -> Sequence[Position | None]:
    """Store the claims, and return what was acknowledged of each. Raises ``StoreUnavailable``."""
    try:
        return await store.claim([hold.claim for hold in claims])
    except StoreUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - the others on this node have nothing to do with it
        fault = error
    if len(claims) == 1:
        _dismiss(claims[0], fault)
        return [None]
    return [position for half in _halves(claims) for position in await held(store, half)]


def _halves(several: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    middle = len(several) // 2
    return several[:middle], several[middle:]


def _dismiss(hold: DurableClaim, fault: Exception) -> None:
    client = hold.subscription.client
    client.dismiss(reason_after(fault, client.session))


PER_USER_MAX: Final = 256
NAMES_MAX: Final = 100_000
"""Of all users."""


class DurableNames:
    """When each name was used last, by user. ``retain_s``: for how long an unused name counts."""

    def __init__(self, per_user_max: int, retain_s: float) -> None:
        self._per_user_max = per_user_max
        self._retain_s = retain_s
        self._used: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()  # who and what was used last comes last
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, owner: str, name: str, now: float) -> bool:
        """Count a name as used; False, with nothing changed, where the user has used as many others as are allowed."""
        names = self._used.setdefault(owner, OrderedDict())
        self._used.move_to_end(owner)
        while names and next(iter(names.values())) < now - self._retain_s:
            names.popitem(last=False)
            self._count -= 1
        if name not in names:
            if len(names) >= self._per_user_max:
                return False
            self._count += 1
        names[name] = now
        names.move_to_end(name)
        while self._count > NAMES_MAX and len(self._used) > 1:
            self._count -= len(self._used.popitem(last=False)[1])
        return True


logger = structlog.get_logger(__name__)

WRITE_AFTER_S: Final = 0.5
"""How long an acknowledgement waits for others at most, while the store is there and nobody waits for it."""
CLAIMS_PERIOD_S: Final = 0.05
CLAIMS_PER_ADDRESS_AND_PERIOD_MAX: Final = 10
"""How many durable subscriptions clients of one address claim in each period: 200 a second. Further claims wait.

Clients that claim and release names in a loop cost the others time. With 120 of them from one address the median from
commit to client falls from 30 to 7 ms (three interleaved rounds; 5 ms at rest).
"""
LOOK_EVERY_S: Final = 10.0
LOOKS_WITHIN_RETENTION: Final = 4
"""Within ``retain_s``, which is at most the time for which the store keeps an unused position."""
RECLAIM_WITHIN_S: Final = 60.0
"""If another server takes a subscription over within this time of its claim, it is claimed again, once.

The other claim may be that of the same client's lost connection, delayed by an outage, a frozen server or load; that
connection is gone and does not claim again. Of two live clients, the one that subscribed last keeps the subscription:
the other client's second claim came before its own.
"""
STEP_MAX: Final = 1000
"""Durable subscriptions in one call of the store."""
TOKEN_BYTES: Final = 12


class Durables:
    """Who holds what on this node. All methods but ``run`` and ``flush`` return at once."""

    def __init__(self, eventlog: EventLog, *, per_user_max: int = PER_USER_MAX) -> None:
        self._eventlog = eventlog
        self._names = DurableNames(per_user_max, eventlog.retain_durables_s)
        self._holds: dict[Subscription, DurableClaim] = {}
        self._holder_of: dict[Key, DurableClaim] = {}
        self._claims: OrderedDict[str | None, dict[DurableClaim, None]] = (
            OrderedDict()
        )  # by address, the next one's first
        self._released: dict[Key, DurableClaim] = {}
        self._noted: dict[DurableClaim, None] = {}
        self._reclaiming: set[DurableClaim] = set()
        self._waiting: list[Waiting] = []
        self._writing = False
        self._look_every_s = min(LOOK_EVERY_S, eventlog.retain_s / LOOKS_WITHIN_RETENTION)
        self._write_at = self._look_at = math.inf
        self._claimed: Counter[str | None] = Counter()  # in this period, by address
        self._period_ends = -math.inf
        self._changed = trio.Event()

    def statistics(self) -> dict[str, int]:
        """How many durable subscriptions are ``held``, and how many have acknowledgements that are ``unwritten``."""
        return {"held": len(self._holds), "unwritten": len(self._released) + len(self._noted)}

    def admits(self, owner: str, name: str) -> bool:
        """Whether a user may have a durable subscription of this name beside those that it has used lately."""
        return self._names.take(owner, name, trio.current_time())

    def claim(self, subscription: Subscription, owner: str, name: str) -> DurableClaim:
        """Let a subscription hold a durable one. Whoever held it on this node is sent away at once.

        What the other has acknowledged is written before, and is in the ``position`` once it is ``claimed``.
        """
        hold = DurableClaim(subscription, Claim(owner, name, secrets.token_hex(TOKEN_BYTES)))
        former = self._holder_of.get(hold.key)
        if former is not None:
            self.release(former.subscription)
            former.subscription.client.dismiss(TAKEN_OVER)
        if not self._holds:
            self._look_at = trio.current_time() + self._look_every_s
        hold.reclaim_until = trio.current_time() + RECLAIM_WITHIN_S
        self._holds[subscription] = self._holder_of[hold.key] = hold
        self._claims.setdefault(subscription.client.peer, {})[hold] = None
        self._changed.set()
        return hold

    def start(self, hold: DurableClaim) -> Waiting:
        """Note where a subscription starts: everything before that counts as acknowledged.

        Does nothing if the hold was released since its claim: its position must not move the next holder's.
        """
        if self._holds.get(hold.subscription) is hold:
            hold.started = True
            self._noted[hold] = None
        return self.written()

    def acknowledged(self, subscription: Subscription) -> bool:
        """Note that a subscription has acknowledged something; False where it is none of these."""
        hold = self._holds.get(subscription)
        if hold is None or not hold.started:
            return False
        self._noted[hold] = None
        if math.isinf(self._write_at):
            self._write_at = trio.current_time() + WRITE_AFTER_S
            self._changed.set()
        return True

    def release(self, subscription: Subscription) -> bool:
        """DurableClaim it no longer, if it is held; False where nothing of it has to be written any more."""
        hold = self._holds.pop(subscription, None)
        if hold is None:
            return False
        del self._holder_of[hold.key]
        self._drop_claim(hold)
        self._reclaiming.discard(hold)
        self._noted.pop(hold, None)
        hold.released = settled(subscription, self._eventlog.head)
        if not hold.started or (hold.released == hold.position and not self._writing):
            return False
        self._released[hold.key] = hold
        self._changed.set()
        return True

    def written(self) -> Waiting:
        """Write all that is noted now without delay."""
        waiting = Waiting()
        if self._noted or self._released or self._writing:
            self._waiting.append(waiting)
            self._changed.set()
        else:
            waiting.finish()
        return waiting

    async def flush(self, patience_s: float) -> None:
        """Write all that is noted; what is not written in this time is lost, and sent again to who comes back."""
        waiting = self.written()
        with trio.move_on_after(patience_s), waiting.scope:
            await trio.sleep_forever()
        if not waiting.done:
            logger.warning("acknowledgements of durable subscriptions are lost", **self.statistics())

    async def run(self) -> None:
        """Claim and acknowledge, for ever. A store that is away is waited for; said once, and once it is back."""
        retries = 0
        while True:
            await self._due()
            try:
                await self._write()
                await self._claim()
            except StoreUnavailable as error:
                if not retries:
                    logger.warning("acknowledgements of durable subscriptions put off", reason=str(error))
                await trio.sleep(backoff_s(retries))
                retries += 1
            else:
                if retries:
                    logger.info("acknowledgements of durable subscriptions are written again")
                retries = 0

    async def _due(self) -> None:
        """Return when there is something to do."""
        while not (self._released or (self._waiting and not self._reclaiming) or self._claimable()):
            self._changed = trio.Event()
            claim_at = self._period_ends if self._claims else math.inf
            with trio.move_on_at(min(self._write_at, self._look_at, claim_at)) as sleep:
                await self._changed.wait()
            if sleep.cancelled_caught:
                return

    async def _write(self) -> None:
        """Write what is noted; all that is held where it is time to look. Raises ``StoreUnavailable``."""
        waiting, released = tuple(self._waiting), dict(self._released)
        looking = trio.current_time() >= self._look_at
        holds = [
            hold
            for hold in (self._holds.values() if looking else self._noted)
            if hold.started and hold not in self._reclaiming
        ]
        positions = {hold: settled(hold.subscription, self._eventlog.head) for hold in holds}
        changed = {hold: position for hold, position in positions.items() if looking or position != hold.position}
        changed |= {hold: hold.released for hold in released.values() if hold.released is not None}
        self._noted.clear()
        self._write_at = math.inf
        try:
            await self._acknowledge(changed)
        except StoreUnavailable:
            self._noted.update((hold, None) for hold in holds if hold.subscription in self._holds)
            self._write_at = trio.current_time()  # due at once: `run` has a pause of its own between attempts
            raise
        if looking:
            self._look_at = trio.current_time() + self._look_every_s if self._holds else math.inf
        for key, hold in released.items():
            if self._released.get(key) is hold:
                del self._released[key]
        if self._reclaiming:
            return  # their acknowledgements are written once they are claimed again
        for one in waiting:
            self._waiting.remove(one)
            one.finish()

    async def _acknowledge(self, positions: Mapping[DurableClaim, Position]) -> None:
        """Write positions. Whoever is not the holder any more is sent away. Raises ``StoreUnavailable``."""
        new = tuple(positions.items())
        self._writing = True
        try:
            for start in range(0, len(new), STEP_MAX):
                self._refused(await keep(self._eventlog.store, new[start : start + STEP_MAX]))
        finally:
            self._writing = False
        for hold, position in positions.items():
            hold.position = position

    def _claimable(self) -> list[DurableClaim]:
        """Return the oldest claims of each address, as many as it has left in this period."""
        now = trio.current_time()
        if now >= self._period_ends:
            self._period_ends = now + CLAIMS_PERIOD_S
            self._claimed.clear()
        found: list[DurableClaim] = []
        for address, claims in self._claims.items():
            left = STEP_MAX - len(found)
            if address is not None:
                left = min(left, CLAIMS_PER_ADDRESS_AND_PERIOD_MAX - self._claimed[address])
            found += islice((hold for hold in claims if hold.key not in self._released), left)
            if len(found) == STEP_MAX:
                break
        return found

    def _drop_claim(self, hold: DurableClaim) -> None:
        """Forget a claim, if it is pending."""
        address = hold.subscription.client.peer
        claims = self._claims.get(address, {})
        claims.pop(hold, None)
        if not claims:
            self._claims.pop(address, None)

    async def _claim(self) -> None:
        """Claim what may be claimed now. Raises ``StoreUnavailable``."""
        claims = self._claimable()
        if not claims:
            return
        of_addresses = Counter(hold.subscription.client.peer for hold in claims)
        self._claimed.update(of_addresses)
        for address in of_addresses:
            self._claims.move_to_end(address)  # if a step has no room for all addresses, the others are next
        positions = await held(self._eventlog.store, claims)
        for hold, position in zip(claims, positions, strict=True):
            hold.position = position
            self._drop_claim(hold)
            hold.claimed.finish()
            if hold in self._reclaiming:
                self._reclaiming.remove(hold)
                self._noted[hold] = None
                self._write_at = trio.current_time()

    def _refused(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            hold = self._holder_of.get((claim.owner, claim.name))
            if hold is None or hold.claim != claim:
                continue
            if trio.current_time() < hold.reclaim_until:
                logger.info("durable subscription claimed again", user=claim.owner, durable=claim.name)
                hold.reclaim_until = -math.inf
                self._reclaiming.add(hold)
                self._claims.setdefault(hold.subscription.client.peer, {})[hold] = None
            else:
                logger.info("durable subscription taken over by another server", user=claim.owner, durable=claim.name)
                hold.subscription.client.dismiss(TAKEN_OVER)
