"""The durable subscriptions of clients of this node: claimed from the store, and acknowledged to it in batches.

Nodes share only the store, which knows the newest holder of each durable subscription. A holder on another node learns
that it was replaced when it acknowledges next, at most ``SCAN_EVERY_S`` later, because every claimed subscription is
acknowledged that often even if its position has not changed. So the store also sees that the subscription is in use,
and on a quiet destination its position follows the log instead of expiring.

One task, ``Durables.run``, makes all calls of the store, one after the other. So no claim is overtaken by an older
one; whatever is recorded during a call goes into the next one. While the store is unavailable, claims wait and
acknowledgements accumulate. If the store rejects a step for many subscriptions, the step is halved until the
subscription at fault is found; only the client of that one is disconnected.

Wire contract, "SUBSCRIBE".
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

from airy_trio.auth.users import User
from airy_trio.delivery.client import Subscription
from airy_trio.delivery.disconnects import TAKEN_OVER, DisconnectReason, reason_after, with_token
from airy_trio.log.event_log import EventLog
from airy_trio.log.store import EPOCH_LENGTH, Acknowledgement, Claim, Position, StoreUnavailable
from airy_trio.retry import Outage
from airy_trio.stomp.frames import AckMode, Subscribe

logger = structlog.get_logger(__name__)

NAME_CHARS_MAX: Final = 128
# Names that one user may use within `[log] retain_durables_s`, and names of all users that are remembered.
PER_USER_MAX: Final = 256
NAMES_MAX: Final = 100_000
# An acknowledgement waits this long for others that are written with it, unless a client waits for the write.
WRITE_AFTER_S: Final = 0.5
# Clients of one address may claim ten durable subscriptions in each period, 200 a second; further claims wait. Clients
# that claim and release names in a loop take time from all others: with 120 of them at one address this limit lowers
# the median from commit to client from 30 to 7 ms (three interleaved rounds; 5 ms at rest).
CLAIMS_PERIOD_S: Final = 0.05
CLAIMS_PER_ADDRESS_AND_PERIOD_MAX: Final = 10
# A position of no epoch. The store replaces it by any other one, and any other one by it.
NOWHERE: Final = Position("0" * EPOCH_LENGTH, 0)
# The period of the scan that acknowledges all claimed subscriptions, and the least number of scans within `retain_s`.
# The store keeps an unused position for at least `retain_s`.
SCAN_EVERY_S: Final = 10.0
SCANS_WITHIN_RETENTION: Final = 4
# If another server takes a subscription over within this time of its claim, it is claimed again, once. The other claim
# may come from a lost connection of the same client, delayed by an outage, a frozen server or load; that connection is
# gone and does not claim again. Of two live clients the one that subscribed last keeps the subscription, because the
# other client's second claim came before its own.
RECLAIM_WITHIN_S: Final = 60.0
# Durable subscriptions in one call of the store.
STEP_MAX: Final = 1000
TOKEN_BYTES: Final = 12

Key = tuple[str, str]
"""Owner and name."""
T = TypeVar("T")


@define(eq=False)
class DurableClaim:
    """A durable subscription that a subscription of a client uses, or is about to use.

    ``claimed``: set once the store knows the holder. ``position``: the acknowledged position in the store, as far as
    this node knows. ``started``: it is decided where the subscription starts, so that there is something to
    acknowledge. ``reclaim_until``: in Trio's time; until then it is claimed again if another server takes it over.
    """

    subscription: Subscription
    stored: Claim
    reclaim_until: float = -math.inf
    claimed: trio.Event = field(factory=trio.Event)
    position: Position | None = None
    started: bool = False

    @property
    def key(self) -> Key:
        """Owner and name."""
        return self.stored.owner, self.stored.name

    @property
    def address(self) -> str:
        """The address or network by which the client is counted."""
        return self.subscription.client.slot.key


class Durables:
    """The claims and acknowledgements of this node; only ``run``, ``flush`` and ``wait_written`` wait."""

    def __init__(self, eventlog: EventLog, *, per_user_max: int = PER_USER_MAX) -> None:
        self._eventlog = eventlog
        self._names = DurableNames(per_user_max, eventlog.retain_durables_s)
        self._claims: dict[Subscription, DurableClaim] = {}
        self._by_key: dict[Key, DurableClaim] = {}
        # Claims that the store does not know yet, by address; the address whose turn is next comes first.
        self._unclaimed: OrderedDict[str, dict[DurableClaim, None]] = OrderedDict()
        self._claimed_in_period: Counter[str] = Counter()  # by address
        self._period_ends = -math.inf
        self._reclaiming: set[DurableClaim] = set()
        self._released: dict[Key, tuple[DurableClaim, Position]] = {}  # with the position to acknowledge
        self._unwritten: dict[DurableClaim, None] = {}
        self._waiting: list[trio.Event] = []
        self._writing = False
        self._scan_every_s = min(SCAN_EVERY_S, eventlog.retain_s / SCANS_WITHIN_RETENTION)
        self._write_at = self._scan_at = math.inf
        self._changed = trio.Event()

    @property
    def claimed(self) -> int:
        """The number of durable subscriptions that clients have claimed."""
        return len(self._claims)

    @property
    def unwritten(self) -> int:
        """The number of those with acknowledgements that the store does not have yet."""
        return len(self._released) + len(self._unwritten)

    def refusal(self, request: Subscribe, user: User, name: str) -> DisconnectReason | None:
        """Return why a SUBSCRIBE with ``durable`` is refused; None if it is allowed (wire contract, "SUBSCRIBE")."""
        details = ""
        if user.name is None:
            token, prose = "403-durable-needs-auth", "A durable subscription needs a user, and this client has none."
        elif request.ack is AckMode.AUTO:
            token = "400-durable-needs-ack"  # noqa: S105 - of an ERROR
            prose = "A durable subscription needs the ack mode client or client-individual."
        elif not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            token, prose = "400-bad-durable", f"The durable header is not 1 to {NAME_CHARS_MAX} printable characters."
        elif not self._names.take(user.name, name, trio.current_time()):
            token = "429-too-many-subscriptions"  # noqa: S105 - of an ERROR
            prose = "This user has used as many names of durable subscriptions lately as are allowed."
            details = "listener.durables_per_user_max is reached"
        else:
            return None
        return with_token(token, prose, receipt_id=request.receipt, details=details)

    def claim(self, subscription: Subscription, owner: str, name: str) -> DurableClaim:
        """Claim a durable subscription, and disconnect a client of this node that uses it.

        Acknowledgements of that client are written first, so they are part of ``position`` once it is ``claimed``.
        """
        now = trio.current_time()
        claim = DurableClaim(subscription, Claim(owner, name, secrets.token_hex(TOKEN_BYTES)))
        former = self._by_key.get(claim.key)
        # Before the new claim is stored under the name, because ``release`` removes the name from ``_by_key``.
        if former is not None:
            self.release(former.subscription)
            former.subscription.client.disconnect(TAKEN_OVER)
        if not self._claims:
            self._scan_at = now + self._scan_every_s
        self._claims[subscription] = self._by_key[claim.key] = claim
        self._unclaimed.setdefault(claim.address, {})[claim] = None
        self._changed.set()
        return claim

    def start(self, claim: DurableClaim) -> None:
        """Acknowledge everything before the position at which a subscription starts.

        Does nothing if the claim was released: its position must not move that of the next holder.
        """
        if self._claims.get(claim.subscription) is claim:
            claim.started = True
            self._unwritten[claim] = None

    def acknowledged(self, subscription: Subscription) -> bool:
        """Record that a subscription has acknowledged something; False if it is not durable."""
        claim = self._claims.get(subscription)
        if claim is None or not claim.started:
            return False
        self._unwritten[claim] = None
        if math.isinf(self._write_at):
            self._write_at = trio.current_time() + WRITE_AFTER_S
            self._changed.set()
        return True

    def release(self, subscription: Subscription) -> bool:
        """End the claim of a subscription, if it has one; whether something has to be written for it."""
        claim = self._claims.pop(subscription, None)
        if claim is None:
            return False
        del self._by_key[claim.key]
        self._remove_unclaimed(claim)
        self._reclaiming.discard(claim)
        self._unwritten.pop(claim, None)
        position = acknowledged_position(subscription, self._eventlog.head)
        # During a call the store may have another position than ``claim.position`` already.
        if not claim.started or (position == claim.position and not self._writing):
            return False
        self._released[claim.key] = claim, position
        self._changed.set()
        return True

    async def wait_written(self) -> None:
        """Write all that is recorded now without delay; return when the store has it."""
        # The store does not have the positions yet that a call is writing now.
        if self._unwritten or self._released or self._writing or self._reclaiming:
            written = trio.Event()
            self._waiting.append(written)
            self._changed.set()
            await written.wait()

    async def flush(self, timeout_s: float) -> None:
        """Write all that is recorded. What is not written in this time is dropped; the events are redelivered."""
        with trio.move_on_after(timeout_s) as scope:
            await self.wait_written()
        if scope.cancelled_caught:
            logger.warning(
                "acknowledgements of durable subscriptions are lost", claimed=self.claimed, unwritten=self.unwritten
            )

    async def run(self) -> None:
        """Claim and acknowledge until cancelled. An outage of the store is logged once, and its end."""
        outage = Outage(
            logger,
            "event store unavailable; acknowledgements deferred",
            "event store available; acknowledgements are written again",
        )
        while True:
            await self._wait_due()
            try:
                await self._write()
                await self._claim()
            except StoreUnavailable as error:
                await trio.sleep(outage.begin(str(error)))
            else:
                outage.end()

    async def _wait_due(self) -> None:
        """Return when there is something to do."""
        while not (self._released or self._waiting or self._claimable()):
            self._changed = trio.Event()
            claim_at = self._period_ends if self._unclaimed else math.inf
            with trio.move_on_at(min(self._write_at, self._scan_at, claim_at)) as sleep:
                await self._changed.wait()
            if sleep.cancelled_caught:
                return

    async def _write(self) -> None:
        """Write the recorded positions; those of all claims if the scan is due. Raises ``StoreUnavailable``."""
        # Clients acknowledge and leave during the call of the store below. So each record is cleared before the call,
        # or compared with the call's own copy after it, and what is recorded during the call stays for the next one:
        #
        # - ``_unwritten`` is cleared first. An acknowledgement during the call adds its claim again. If the call fails,
        #   all its claims are added again, except those that were released during it, which ``release`` has recorded.
        #
        # - A released claim stays in ``_released`` until a call has succeeded that began after its release. Until then
        #   a new claim of its name waits, so that it starts after these acknowledgements.
        #
        # - A task that begins to wait during the call may have recorded something before, so it waits for the next one.
        #
        # It is not known what a failed call has written. Writing a position again does no harm.
        waiting, released = tuple(self._waiting), dict(self._released)
        scanning = trio.current_time() >= self._scan_at
        claims = [
            claim
            for claim in (self._claims.values() if scanning else self._unwritten)
            if claim.started and claim not in self._reclaiming
        ]
        positions = {claim: acknowledged_position(claim.subscription, self._eventlog.head) for claim in claims}
        changed = {claim: position for claim, position in positions.items() if scanning or position != claim.position}
        changed |= dict(released.values())
        self._unwritten.clear()
        self._write_at = math.inf
        try:
            await self._acknowledge(changed)
        except StoreUnavailable:
            self._unwritten.update((claim, None) for claim in claims if claim.subscription in self._claims)
            self._write_at = trio.current_time()  # due at once: `run` waits between attempts
            raise
        if scanning:
            self._scan_at = trio.current_time() + self._scan_every_s if self._claims else math.inf
        for key, entry in released.items():
            if self._released.get(key) is entry:
                del self._released[key]
        if self._reclaiming:
            return  # their acknowledgements are written once they are claimed again
        for written in waiting:
            self._waiting.remove(written)
            written.set()

    async def _acknowledge(self, positions: Mapping[DurableClaim, Position]) -> None:
        """Write positions, and handle the claims that have another holder by now. Raises ``StoreUnavailable``."""

        def step(claims: Sequence[DurableClaim]) -> Awaitable[Sequence[Claim]]:
            return self._eventlog.store.acknowledge([Acknowledgement(one.stored, positions[one]) for one in claims])

        claims = tuple(positions)
        self._writing = True
        try:
            for start in range(0, len(claims), STEP_MAX):
                self._replaced(await in_halves(step, claims[start : start + STEP_MAX], ()))
        finally:
            self._writing = False
        for claim, position in positions.items():
            if claim not in self._reclaiming:  # its position was rejected, and is written after the second claim
                claim.position = position

    def _replaced(self, replaced: Sequence[Claim]) -> None:
        """Claim again, or disconnect, for each holder that the store has replaced by another one."""
        for stored in replaced:
            claim = self._by_key.get((stored.owner, stored.name))
            if claim is None or claim.stored != stored:
                continue
            if trio.current_time() < claim.reclaim_until:
                logger.info("durable subscription claimed again", user=stored.owner, durable=stored.name)
                claim.reclaim_until = -math.inf
                self._reclaiming.add(claim)
            else:
                logger.info("durable subscription taken over by another server", user=stored.owner, durable=stored.name)
                claim.subscription.client.disconnect(TAKEN_OVER)

    def _claimable(self) -> list[DurableClaim]:
        """Return the oldest unclaimed ones of each address, as many as it has left in this period.

        Second claims come first and do not count: the receipts of all clients wait for them, and each was paced before.
        A name whose former claim still has acknowledgements to write has to wait: the new claim starts after them.
        """
        now = trio.current_time()
        if now >= self._period_ends:
            self._period_ends = now + CLAIMS_PERIOD_S
            self._claimed_in_period.clear()
        taken = list(islice(self._reclaiming, STEP_MAX))
        for address, claims in self._unclaimed.items():
            left = min(STEP_MAX - len(taken), CLAIMS_PER_ADDRESS_AND_PERIOD_MAX - self._claimed_in_period[address])
            taken += islice((claim for claim in claims if claim.key not in self._released), left)
            if len(taken) == STEP_MAX:
                break
        return taken

    async def _claim(self) -> None:
        """Claim what may be claimed now. Raises ``StoreUnavailable``."""
        claims = self._claimable()
        if not claims:
            return
        addresses = Counter(claim.address for claim in claims if claim not in self._reclaiming)
        self._claimed_in_period.update(addresses)
        for address in addresses:
            self._unclaimed.move_to_end(address)  # if a step has no room for all addresses, the others are next

        def step(claims: Sequence[DurableClaim]) -> Awaitable[Sequence[Position | None]]:
            return self._eventlog.store.claim([claim.stored for claim in claims])

        positions = await in_halves(step, claims, (None,))
        # If a claim was released during the call, the store has it, but no client uses it. The next claim of its name
        # replaces it.
        for claim, position in zip(claims, positions, strict=True):
            claim.position = position
            self._remove_unclaimed(claim)
            if not claim.claimed.is_set():
                claim.reclaim_until = trio.current_time() + RECLAIM_WITHIN_S
                claim.claimed.set()
            if claim in self._reclaiming:
                self._reclaiming.remove(claim)
                self._unwritten[claim] = None
                self._write_at = trio.current_time()

    def _remove_unclaimed(self, claim: DurableClaim) -> None:
        claims = self._unclaimed.get(claim.address, {})
        claims.pop(claim, None)
        if not claims:
            self._unclaimed.pop(claim.address, None)


def acknowledged_position(subscription: Subscription, head: Position) -> Position:
    """Return the position to resume after: just before the oldest unacknowledged event.

    If nothing is in flight, it is the cursor; if the view also has nothing left, the ``head`` of the log. While no
    event of a current state was sent, nothing can be resumed: the position is ``NOWHERE``. A stored position that has
    expired must not stay: another node may still have all events after it in memory and would resume there, but the
    client has dropped what it had before.
    """
    position, window = subscription.position, subscription.window
    oldest = None if window is None else window.oldest
    if oldest is not None:
        return position.at(oldest - 1)
    replay = subscription.replay
    if replay is not None and replay.state is not None and not position.offset:
        return NOWHERE
    if replay is None and position.epoch == head.epoch and subscription.view.last <= position.offset:
        return max(position, head)
    return position


async def in_halves(
    step: Callable[[Sequence[DurableClaim]], Awaitable[Sequence[T]]],
    claims: Sequence[DurableClaim],
    instead: Sequence[T],
) -> Sequence[T]:
    """Make a step of the store for some claims; halve it while the store rejects it, until one claim is at fault.

    The client of that one is disconnected, and its result is ``instead``. Raises ``StoreUnavailable``.
    """
    try:
        return await step(claims)
    except StoreUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - it concerns one of these claims, not the others on this node
        fault = error
    if len(claims) == 1:
        client = claims[0].subscription.client
        client.disconnect(reason_after(fault, client.session))
        return instead
    middle = len(claims) // 2
    halves = claims[:middle], claims[middle:]
    return [result for half in halves for result in await in_halves(step, half, instead)]


class DurableNames:
    """The names of durable subscriptions that each user has used lately on this node, and their limit.

    The store keeps a row for each name until it was not used for ``[log] retain_durables_s``, so a client that invents
    a new name each time would fill it. Each node counts the names that it has seen since its start. Its memory is
    bounded as well: the user whose last use is the oldest is forgotten first.
    """

    def __init__(self, per_user_max: int, retain_s: float) -> None:
        self._per_user_max = per_user_max
        self._retain_s = retain_s
        self._used: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()  # users and names, the latest use last
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, owner: str, name: str, now: float) -> bool:
        """Count a name as used; False, and nothing changes, if the user has used as many others as are allowed."""
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
        # The user of this call is the last one, so its names are never forgotten here.
        while self._count > NAMES_MAX and len(self._used) > 1:
            self._count -= len(self._used.popitem(last=False)[1])
        return True
