"""The event store in a Redis (6.2 or newer), as one stream: for so many nodes that they would load the database.

Every verb is one or a few Lua scripts (``scripts``); Redis executes each script as a whole. coredis runs natively on
Trio. The next call opens a connection again after one was lost, and no call is repeated automatically, because it may
have taken effect.

The log is truncated when Redis loses its newest writes: after a power failure with ``appendfsync everysec``, after a
fail-over to a replica that lagged, after any restart without ``appendonly``. The event log notices that and begins a
new epoch.

Destinations have no index, because that would double the writes of an append. A read for one destination scans all
events after its position, ``SCAN_EVENTS`` and ``SCAN_BYTES`` at a time. That takes long from an old position, but Redis
serves other connections between the scripts.
"""
# ruff: noqa: D102 - the port documents each method

import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final, TypeVar, assert_never
from urllib.parse import parse_qs, urlsplit

import coredis
import trio
from attrs import evolve, frozen
from coredis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
    UnblockedError,
)
from coredis.exceptions import ConnectionError as RedisConnectionError
from coredis.retry import NoRetryPolicy

from airy_trio.errors import AiryTrioError, SettingsError
from airy_trio.events.destinations import EVERYTHING, Destination, Everything, OfChannel, OfConversation, OfType, Within
from airy_trio.log.redis import scripts
from airy_trio.log.store import (
    Acknowledgement,
    Bounds,
    Claim,
    EventStore,
    NewEvent,
    Position,
    PositionExpired,
    StaleAppend,
    StateAt,
    StateChange,
    StoredEvent,
    StoredState,
    StoreUnavailable,
    milliseconds,
    new_epoch,
    stored_after,
    up_to_bytes,
)

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 5.0
RECONNECT_EVERY_S: Final = 5.0
"""The shortest interval between two times that all connections are closed because the server is a replica."""
CONNECTIONS_MAX: Final = 64
"""The most requests at the same time, because each may need a connection of its own."""
PLACES: Final = 2**17
"""For connections in the pool of coredis. coredis 6.9 loses a place for good when a connection ends during a blocking
read, or when a call is cancelled while it opens one. Without places, all calls wait forever. With one loss in each
``RECONNECT_EVERY_S`` these last for a week. They cost 1 MB and, when the pool is made, 4 ms."""
WAIT_MS: Final = 1000
"""How long one blocking read waits. A Redis that was emptied sends no notification, and is noticed by then."""
SCAN_EVENTS: Final = 1000
"""Events scanned by one script: about a millisecond in which Redis serves no other connection."""
SCAN_BYTES: Final = 1024 * 1024
"""Bytes of bodies scanned by one script, for the same reason; it also limits the size of an answer."""
SCAN_EVENTS_MIN: Final = 64
SCAN_BYTES_MIN: Final = 64 * 1024
"""The least that the first script of a read scans for a destination. A smaller scan costs as much."""
SCAN_GROWTHS: Final = 4
"""Doublings from the smallest scan to the largest."""
_DATABASE: Final = re.compile(r"/?|/[0-9]+")


@asynccontextmanager
async def open_store(url: str, *, name: str = "airy_trio") -> AsyncIterator[EventStore]:
    """Open the store at ``redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]``, or ``rediss://`` or ``unix://``.

    ``name``: the prefix of its keys. The first verb connects. An exception raised inside the block leaves it in an
    exception group, because connections have tasks of their own. Raises ``SettingsError`` for a URL that cannot be
    used.
    """
    async with _client_of(url) as client:
        yield RedisStore(client, name)


def _client_of(url: str) -> "coredis.Redis[bytes]":
    """Make a client, which does not connect yet. Raises ``SettingsError`` for a URL that cannot be used."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "rediss" and parse_qs(parts.query).get("ssl_cert_reqs") != ["none"]:
            # By default coredis accepts the certificate of any host. Of two equal options it uses the first.
            url = parts._replace(query=f"{parts.query}&ssl_check_hostname=true").geturl()
        client = coredis.Redis.from_url(
            url,
            max_connections=PLACES,
            stream_timeout=ANSWER_TIMEOUT_S,
            connect_timeout=CONNECT_TIMEOUT_S,
            retry_policy=NoRetryPolicy(),
            decode_components=True,
            verify_version=False,
        )
    except (KeyError, ValueError, OSError) as error:  # their messages may quote the URL
        reason = getattr(error, "strerror", None) or 'an option after "?", or the URL itself, is not valid'
        raise SettingsError([f"log.url: the URL of Redis cannot be used: {reason}"]) from None
    if parts.scheme != "unix" and not parts.hostname:
        raise SettingsError(["log.url: the URL of Redis has no host (in a password write # / ? as %23 %2F %3F)"])
    if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):  # coredis would use database 0
        raise SettingsError(["log.url: the database of Redis is a number, redis://HOST/NUMBER"])
    return client


class RedisStore:
    """``EventStore`` over a client that the caller opens and closes."""

    def __init__(self, client: "coredis.Redis[bytes]", name: str) -> None:
        self._client = client
        parts = ("events", "state", "bell", "acknowledged", "used", "holders", "current", "kept", "ended")
        # The braces are for a cluster: all keys of a script must be in one slot, which Redis computes from the part in
        # braces.
        self._keys = [f"{{{name}}}:{part}" for part in parts]
        _, _, self._notifications, self._acknowledged, *_ = self._keys
        self._script = cache(client.register_script)
        self._limiter = trio.CapacityLimiter(CONNECTIONS_MAX)
        self._reconnect_at = -math.inf

    async def bounds(self) -> Bounds:
        bounds, _, generation, marks, folded = await self._run(scripts.BOUNDS)
        state = None if generation is None else StoredState(generation.decode(), marks.decode(), folded)
        return evolve(read_bounds(bounds), state=state)

    async def append(
        self,
        expected: Position,
        events: Sequence[NewEvent],
        resume_point: str,
        *,
        replaces: str | None = None,
        state: StateChange | None = None,
    ) -> Sequence[StoredEvent]:
        known = "" if replaces is None else f"={replaces}"
        head = (expected.epoch, expected.offset, resume_point, known)
        values = values_of(events, state)
        bounds, *at = await self._run(scripts.APPEND, *head, *values)
        if not at:
            found = read_bounds(bounds).head
            message = (
                f"the head is {found}, not {expected}"
                if found != expected
                else "the resume point is not the one that the writer expects, or the current state has lost objects"
            )
            raise StaleAppend(message)
        return stored_after(expected, events, int(at[0]))

    async def fold(self, generation: str, types: Collection[str], limit: int) -> bool:
        return bool(await self._run(scripts.FOLD, generation, limit, SCAN_BYTES, *types))

    async def read(
        self, after: Position, limit: int, destination: Destination | None = None, *, bytes_max: int | None = None
    ) -> Sequence[StoredEvent]:
        scan = _Scan(scripts.SCAN, (after.epoch, 0), destination, f"the events after {after} are gone")
        return await self._read(scan, after.offset, limit, bytes_max)

    async def current(
        self,
        state: StateAt,
        after: Position,
        limit: int,
        destination: Destination | None = None,
        *,
        bytes_max: int | None = None,
    ) -> Sequence[StoredEvent]:
        begin = (state.until.epoch, state.generation, state.until.offset)
        gone = f"the state {state.generation} up to {state.until} is gone"
        return await self._read(_Scan(scripts.CURRENT, begin, destination, gone), after.offset, limit, bytes_max)

    async def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        scan = _Scan(scripts.SCAN, (until.epoch, 1), destination, f"the events up to {until} are gone")
        more, offset = True, until.offset
        while more:
            more, reached, events = await self._scan(scan, offset, SCAN_EVENTS, SCAN_BYTES)
            if events:
                return events[0]
            offset = reached - 1
        return None

    async def since(self, age_s: float) -> Position:
        bounds, offset = await self._run(scripts.SINCE, milliseconds(age_s))
        return read_bounds(bounds).head.at(int(offset))

    async def resume_point(self) -> str | None:
        _, point, *_ = await self._run(scripts.BOUNDS)
        return None if point is None else point.decode()

    async def begin_epoch(self, expected: Position, resume_point: str | None) -> Bounds:
        points = [] if resume_point is None else [resume_point]
        bounds, begun = await self._run(scripts.BEGIN_EPOCH, expected.epoch, expected.offset, *points)
        if not begun:
            raise StaleAppend(f"the head is {read_bounds(bounds).head}, not {expected}")
        return read_bounds(bounds)

    async def wait(self, after: Position) -> None:
        """See ``EventStore.wait``: returns at once when another node appends, because it blocks on a stream."""
        # One script reads the head and the id of the newest notification. Each later append replaces that notification
        # by one with a greater id. So if an append comes between the script and the blocking read, the read returns at
        # once. With PUBLISH the message would be lost then. The stream of events cannot be waited for, because a new
        # epoch deletes it and its ids begin again.
        while True:
            bounds, *_ = await self._run(scripts.BOUNDS)
            if read_bounds(bounds).head != after:
                return
            await self._answered(self._client.xread({self._notifications: bounds[4]}, count=1, block=WAIT_MS))

    async def trim(self, *, age_s: float, keep: int, limit: int, unused_s: float) -> int:
        """See ``EventStore.trim``. Trims exactly (``=``, not ``~``), because the caller relies on the number."""
        return int(await self._run(scripts.TRIM, milliseconds(age_s), keep, limit, milliseconds(unused_s)))

    async def acknowledged(self, owner: str, name: str) -> Position | None:
        found = await self._answered(self._client.hget(self._acknowledged, durable_key(owner, name)))
        return None if found is None else Position.parse(found.decode())

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        wanted = [text for one in claims for text in (durable_key(one.owner, one.name), one.token)]
        found = await self._run(scripts.CLAIM, *wanted)
        return [Position.parse(position.decode()) for position in found]

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        known: list[str | int] = []
        for one in acknowledgements:
            known += (durable_key(one.claim.owner, one.claim.name), one.claim.token)
            known += (one.position.epoch, one.position.offset)
        lost = await self._run(scripts.ACKNOWLEDGE, *known)
        return [acknowledgements[index].claim for index in lost]

    async def _read(self, scan: "_Scan", offset: int, limit: int, bytes_max: int | None) -> list[StoredEvent]:
        """Scan after an offset until enough events are found."""
        found: list[StoredEvent] = []
        size, scans, more = 0, 0, True
        while more and len(found) < limit and (bytes_max is None or size < bytes_max):
            bytes_left = None if bytes_max is None else bytes_max - size
            count, scan_bytes = _scan_limits(scan.destination, scans, limit - len(found), bytes_left)
            scans += 1
            more, offset, events = await self._scan(scan, offset, count, scan_bytes)
            found += events
            size += sum(len(event.body) for event in events)
        # The last scan may have found more than requested, because a scan has a minimum size.
        return list(up_to_bytes(found[:limit], bytes_max))

    async def _scan(
        self, scan: "_Scan", offset: int, count: int, scan_bytes: int
    ) -> tuple[bool, int, list[StoredEvent]]:
        """Scan the next events, up to a count and to bytes of bodies.

        Returns whether there may be more events, the offset of the last scanned one, and those of the destination.
        """
        limits = (count, scan_bytes)
        _, *found = await self._run(scan.script, *scan.begin, offset, *limits, *match_arguments(scan.destination))
        if not found:
            raise PositionExpired(scan.gone)
        more, reached, entries = found
        return more == 1, offset_of(reached) if reached else 0, [read_entry(*entry) for entry in entries]

    async def _run(self, source: str, *arguments: str | bytes | int) -> Any:  # noqa: ANN401 - what the script returns
        return await self._answered(self._script(source)(self._keys, [new_epoch(), *arguments]))

    async def _answered(self, answer: Awaitable[T]) -> T:
        try:
            async with self._limiter:
                return await answered(answer)
        except DemotedError:
            # The address may lead to another server now, but open connections stay with this one. All are closed at
            # once, because reads from a replica that lags would look like a truncated log. Not at each attempt: if the
            # address still leads to the replica, the verbs that read continue there.
            if trio.current_time() >= self._reconnect_at:
                self._reconnect_at = trio.current_time() + RECONNECT_EVERY_S
                self._client.connection_pool.disconnect()
            raise


@frozen
class _Scan:
    """A scan of the log or of the current state, by ``SCAN`` or ``CURRENT``.

    ``begin``: the script's arguments before the offset. ``gone``: the message of ``PositionExpired``.
    """

    script: str
    begin: tuple[str | int, ...]
    destination: Destination | None
    gone: str


class DemotedError(StoreUnavailable):
    """The Redis server is a replica, or has just become one: a fail-over has made another one the primary."""


class RedisRefusedError(AiryTrioError):
    """Redis has answered that the request is not possible: a permission is missing, or the version is too old."""


# coredis has exception classes for some error codes and strips these from the message. Any other code is the first word
# of the message. A server that becomes a replica ends blocking reads with UNBLOCKED.
_DEMOTED: Final = (ReadOnlyError, UnblockedError)
_UNAVAILABLE: Final = (RedisConnectionError, OSError, ClusterDownError, TryAgainError)
_UNAVAILABLE_CODES: Final = frozenset({
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "TRYAGAIN",
})  # fmt: skip
# Before version 7, Redis reports an error inside a script as ERR, with the actual code after the place in the script.
_CODE: Final = re.compile(r"(?:Error running script .*?(?:@user_script: ?\d+: )+-?)?([A-Z]+)\b")


async def answered(answer: Awaitable[T]) -> T:
    """Await the answer of Redis. Raises ``StoreUnavailable`` if waiting helps, else ``RedisRefusedError``."""
    try:
        return await answer
    except (AuthenticationError, RedisError, OSError) as error:  # TimeoutError is an OSError
        # coredis raises an error of the connection also for a call that was cancelled.
        await trio.lowlevel.checkpoint_if_cancelled()  # noqa: ASYNC120 - the error is discarded on purpose
        causes = error.__context__, getattr(error.__context__, "__cause__", None)  # such as a wrong certificate
        known = [str(cause) for cause in causes if isinstance(cause, OSError)]
        reason = ": ".join(text for text in (type(error).__name__, str(error), *known[-1:]) if text).splitlines()[0]
        raise _translated(error, reason) from None


def _translated(error: Exception, reason: str) -> AiryTrioError:
    found = _CODE.match(str(error))
    code = "" if found is None else found[1]
    if not isinstance(error, AuthenticationError):
        if isinstance(error, _DEMOTED) or code == "READONLY":
            return DemotedError(reason)
        if isinstance(error, _UNAVAILABLE) or code in _UNAVAILABLE_CODES:
            return StoreUnavailable(reason)
    return RedisRefusedError(f"Redis refuses the request (log.url): {reason}")


_FIELD_INDEXES: Final[Mapping[str, int]] = {name: 2 * number for number, name in enumerate(scripts.FIELDS, start=1)}


def read_bounds(answer: Sequence[Any]) -> Bounds:
    """Return the bounds as every script returns them."""
    epoch, first, last, now_ms, _ = answer
    return Bounds(epoch=epoch.decode(), first=first, last=last, now_ms=now_ms)


def fields_of(event: NewEvent) -> Sequence[bytes]:
    """Return the fields of an event except its time (``FIELDS``). Optional text begins with + and is - for None."""
    texts = (event.type, event.object, _optional(event.conversation_id), _optional(event.channel_id))
    whole = b"0" if event.age_ms is None else b"0 %d" % event.age_ms
    return [*(text.encode() for text in texts), b"1" if event.truncated else whole, event.body]


def values_of(events: Sequence[NewEvent], state: StateChange | None) -> list[str | bytes | int]:
    """Return the arguments of ``APPEND`` from the generation on."""
    change = StateChange(generation="") if state is None else state
    values: list[str | bytes | int] = [change.generation, change.marks, len(change.ended), len(change.swept)]
    values.append(int(change.folds))
    values += change.ended
    for type_, upto in change.swept.items():
        values += (type_, upto)
    for event in events:
        values += fields_of(event)
    return values


def read_entry(id_: bytes, fields: Sequence[bytes]) -> StoredEvent:
    """Return the event of one entry, whose fields are names and values in turn."""
    at, type_, object_, conversation, channel, flag, body = fields[1::2]
    truncated, _, age_ms = flag.partition(b" ")
    return StoredEvent(
        offset=offset_of(id_),
        appended_at_ms=int(at),
        type=type_.decode(),
        object=object_.decode(),
        conversation_id=conversation[1:].decode() if conversation.startswith(b"+") else None,
        channel_id=channel[1:].decode() if channel.startswith(b"+") else None,
        body=body,
        truncated=truncated == b"1",
        age_ms=int(age_ms) if age_ms else None,
    )


def _optional(text: str | None) -> str:
    return "-" if text is None else f"+{text}"


def _scan_limits(destination: Destination | None, scans: int, left: int, bytes_left: int | None) -> tuple[int, int]:
    """Return how many events the next script of a read scans, and how many bytes of bodies.

    ``scans``: the scripts before it. ``left``, ``bytes_left``: what the read may still return. It is unknown how many
    events belong to a destination, so a read begins with a small scan, and each further scan is twice as large.

    Compared with full scans, in five interleaved rounds over 20,000 events of 1 KB in pages of 128 KiB: the whole state
    is read 6.7 times as fast (56,000 events/s), a type with 99 % of the events 3.3 times (in the log 3.0 times), and a
    type with 1 % as fast as before.
    """
    if destination is None or destination == EVERYTHING:
        return min(left, SCAN_EVENTS), SCAN_BYTES if bytes_left is None else min(bytes_left, SCAN_BYTES)
    growth = 2 ** min(scans, SCAN_GROWTHS)
    bytes_first = SCAN_BYTES if bytes_left is None else max(bytes_left, SCAN_BYTES_MIN)
    return min(max(left, SCAN_EVENTS_MIN) * growth, SCAN_EVENTS), min(bytes_first * growth, SCAN_BYTES)


def offset_of(id_: bytes) -> int:
    """Return the offset in the id of an entry."""
    return int(id_.partition(b"-")[0])


def durable_key(owner: str, name: str) -> str:
    """Return the key of a durable subscription in the hashes and the sorted set."""
    return json.dumps([owner, name])


def match_arguments(destination: Destination | None) -> tuple[int | str, ...]:
    """Return the arguments of a scan for a destination: the index of a field, its value, and the channels."""
    match destination:
        case None | Everything():
            return 0, ""
        case OfType(type=type_):
            return _FIELD_INDEXES["type"], type_
        case OfChannel(id=id_):
            return _FIELD_INDEXES["channel"], f"+{id_}"
        case OfConversation(id=id_):
            return _FIELD_INDEXES["conversation"], f"+{id_}"
        case Within(destination=wider, channels=channels):
            return *match_arguments(wider), *(f"+{id_}" for id_ in channels)
        case _:
            assert_never(destination)
