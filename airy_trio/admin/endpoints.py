"""The pages of the admin port: those for programs, and the console. None of them waits.

Counts are cumulative, so two answers give a rate. They are read from the statistics of the long-lived objects for each
answer. In the metrics, each label has a closed list of values (event types, disconnect reasons, limits, statuses,
tokens, parts), and each value has a series from the start. ``connection_page`` and ``recipients`` contain neither
credentials nor data that was sent to a client.

The files of the console are read once, and load nothing from elsewhere. The content security policy that is sent with
each enforces that, and allows no inline script or style. The console receives events as a client.
"""

import itertools
import json
import os
import re
import socket
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, evolve, frozen
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from airy_trio import __version__
from airy_trio.admin.readiness import Condition, Readiness
from airy_trio.admin.server import Answer, Page, PageRequest, Pages
from airy_trio.delivery.client import Client, ClientState, Subscription
from airy_trio.events.destinations import Addressed, covers, destinations_of, text
from airy_trio.events.models import TYPES
from airy_trio.log.event_log import EventLog
from airy_trio.log.recorder import Recorder, Retention
from airy_trio.log.store import Position
from airy_trio.log.tail import LATENCY_BUCKETS_S, Latencies
from airy_trio.sessions.listener import Address
from airy_trio.sessions.session import Sessions

PREFIX: Final = "airy_trio_"
"""The prefix of the names of all our metrics."""

HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_PAGE_HEADERS: Final = {
    **HEADERS,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src {}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 200
NUMBER_DIGITS_MAX: Final = 18
CONSOLE: Final = Path(__file__).parent / "console"
CONSOLE_PAGE: Final = "console.html"
CONSOLE_PREFIX: Final = "/console/"
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Clients may choose longer destinations; the rest is not shown.
DESTINATION_CHARS_MAX: Final = 128
# Clients that are listed as recipients; all are counted.
LISTED_MAX: Final = 100

# The verdicts on one client, the most favourable first. A client gets the most favourable verdict of its subscriptions.
PASSED: Final = "passed"  # the event was sent, or is older than the subscription
WAITING: Final = "waiting"  # the cursor has not reached the event
FILTERED: Final = "filtered"  # the client may subscribe to a destination of the event, but has not
NOT_GRANTED: Final = "not_granted"  # the credentials exclude the event
NO_SUBSCRIPTION: Final = "no_subscription"


@frozen(kw_only=True)
class Sources:
    """The objects that the pages of a running server read. ``node``: see ``node_of``."""

    sessions: Sessions
    log: EventLog
    recorder: Recorder
    retention: Retention
    readiness: Readiness
    endpoint: "ClientEndpoint"
    node: Mapping[str, object]


def starting_pages(conditions: Callable[[], Mapping[str, Condition]]) -> Pages:
    """Make the pages of a server that is starting: probes are answered, all other pages are 503."""

    def later(_request: PageRequest) -> Answer:
        return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "this server is starting"})

    return Pages(_probes(conditions), later)


def pages(sources: Sources) -> Mapping[str, Page]:
    """Make the pages of a running server. The sources are read for every request."""
    collectors, endpoint = registry(sources), sources.endpoint

    def metrics(request: PageRequest) -> Answer:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Answer(HTTPStatus.OK, encode(collectors), {"content-type": content_type, **HEADERS})

    def clients(request: PageRequest) -> Answer:
        position, type_ = Position.parse(request.query.get("position", "")), request.query.get("type", "")
        if position is None or type_ not in TYPES:
            return _json(HTTPStatus.BAD_REQUEST, {"error": "position=EPOCH-OFFSET and type=TYPE are needed"})
        event = _QueriedEvent(type_, request.query.get("channel"), request.query.get("conversation"))
        return _json(HTTPStatus.OK, recipients(sources.sessions.clients, position, event))

    def figures(request: PageRequest) -> Answer:
        origins = sources.sessions.services.options.allowed_origins
        clients = {"url": endpoint.url(request.host), "token": endpoint.token, "allowed_origins": origins}
        return _json(HTTPStatus.OK, {"clients": clients, "node": sources.node, **_figures(sources)})

    def connections(request: PageRequest) -> Answer:
        try:
            after = _number(request, "after", 0, least=0)
            limit = _number(request, "limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)
            behind = bool(_number(request, "behind", 0, least=0, most=1))
        except ValueError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        page = connection_page(sources.sessions.clients, after=after, limit=limit, behind=behind)
        return _json(HTTPStatus.OK, {"total": len(sources.sessions.clients), **page})

    return {
        **_probes(sources.readiness.conditions),
        "/metrics": metrics,
        "/api/clients": clients,
        "/api/figures": figures,
        "/api/connections": connections,
        **_console_pages(endpoint),
    }


def _console_pages(endpoint: "ClientEndpoint") -> Mapping[str, Page]:
    """Make the page of the console and its files. ``endpoint``: the port for clients, which the policy allows."""

    def of(file: Path) -> Page:
        body, type_ = file.read_bytes(), MEDIA_TYPES[file.suffix]

        def page(request: PageRequest) -> Answer:
            clients = endpoint.origin(request.host)
            policy = _POLICY.format("'self'" if clients is None else f"'self' {clients}")
            return Answer(
                HTTPStatus.OK, body, {"content-type": type_, "content-security-policy": policy, **_PAGE_HEADERS}
            )

        return page

    files = {file.name: of(file) for file in sorted(CONSOLE.iterdir()) if file.suffix in MEDIA_TYPES}
    return {"/" if name == CONSOLE_PAGE else CONSOLE_PREFIX + name: page for name, page in files.items()}


def _probes(conditions: Callable[[], Mapping[str, Condition]]) -> Mapping[str, Page]:
    def livez(_request: PageRequest) -> Answer:
        return _json(HTTPStatus.OK, {"alive": True})

    def readyz(_request: PageRequest) -> Answer:
        ready, parts = _readiness(conditions())
        return _json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, {"ready": ready, **parts})

    return {"/livez": livez, "/readyz": readyz}


def _readiness(conditions: Mapping[str, Condition]) -> tuple[bool, Mapping[str, object]]:
    """Return whether all parts are ready, and the condition of each for JSON."""
    parts = {name: {"well": one.well, "reason": one.reason} for name, one in conditions.items()}
    return all(one.well for one in conditions.values()), parts


@frozen
class _QueriedEvent:
    type: str
    channel_id: str | None
    conversation_id: str | None


def _json(status: HTTPStatus, body: Mapping[str, object]) -> Answer:
    return Answer(status, f"{json.dumps(body)}\n".encode(), {"content-type": "application/json", **HEADERS})


def _figures(sources: Sources) -> Mapping[str, Any]:
    sessions, recorder, log = sources.sessions, sources.recorder, sources.log
    batches, recorded = sessions.services.batches, recorder.counts
    latencies = batches.latencies
    ready, parts = _readiness(sources.readiness.conditions())
    return {
        "version": __version__,
        "connections": len(sessions.clients),
        "subscriptions": sessions.subscriptions,
        "behind": sessions.behind,
        "deliveries": batches.deliveries,
        "bytes": batches.bytes,
        "latency": {"bounds_s": LATENCY_BUCKETS_S, "counts": latencies.counts, "total_s": latencies.total_s},
        "recording": recorder.recording,
        "lag_s": recorder.lag_s,
        "events": recorded["events"],
        "row_faults": recorded["faults"],
        "head": str(log.head),
        "ready": ready,
        "parts": parts,
    }


def _number(request: PageRequest, name: str, default: int, *, least: int, most: int | None = None) -> int:
    """Read a whole number from the query. Raises ``ValueError``, in words for the peer."""
    text = request.query.get(name)
    if text is None:
        return default
    plain = text.isascii() and text.isdecimal() and len(text) <= NUMBER_DIGITS_MAX
    if not plain or int(text) < least or (most is not None and int(text) > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {allowed}")
    return int(text)


def node_of(number: int, ports: Sequence[int], others: Sequence[str]) -> Mapping[str, object]:
    """Describe the process that answers, and list the other consoles that its console links to.

    ``number``: its number among the processes of its command, from 0. ``ports``: the admin port of each of them. If
    there are several, the last one only records; the only process of a command has no name. ``others``: see
    ``AdminOptions``.
    """
    last = len(ports) - 1
    names = (f"worker {each}" if each < last else "recorder" if last else "" for each in range(len(ports)))
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "number": number,
        "processes": [{"name": name, "port": port} for name, port in zip(names, ports, strict=True)],
        "others": list(others),
    }


_NAME: Final = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_.-]{1,253}")
_ORIGIN: Final = re.compile(r"wss?://[^/]+")


@define(eq=False)
class ClientEndpoint:
    """The port for clients as a browser reaches it.

    ``url``: its WebSocket URL if it differs from the listener's (a proxy, a certificate for a name), otherwise "".
    ``token``: whether CONNECT needs one. ``address``: the listener's, None until the server has started.
    """

    _url: str
    token: bool
    address: Address | None = None

    def url(self, host: str) -> str | None:
        """Return the WebSocket URL for a page that was requested with the Host header ``host``.

        Without a configured URL it names the listener's host, or the page's if the listener accepts connections on all
        addresses. None: the server has not started, or ``host`` is not a host name.
        """
        here = _NAME.match(host)
        if self._url or self.address is None or here is None:
            return self._url or None
        if self.address.host not in {"0.0.0.0", "::", ""}:  # noqa: S104 - only compared
            return self.address.url
        return evolve(self.address, host=here[0].strip("[]")).url

    def origin(self, host: str) -> str | None:
        """Return scheme, host and port of that URL, for a Content-Security-Policy."""
        url = self.url(host)
        found = None if url is None else _ORIGIN.match(url)
        return None if found is None else found[0]


def connection_page(clients: Iterable[Client], *, after: int, limit: int, behind: bool) -> dict[str, Any]:
    """Describe the first ``limit`` connections with numbers above ``after``, the oldest first.

    ``behind``: only those with events still to be sent. ``next`` is the number after which the next page begins;
    None if this is the last one.
    """
    now = trio.current_time()
    wanted = (client for client in clients if client.number > after and (not behind or _is_behind(client)))
    page = list(itertools.islice(wanted, limit))
    is_last = next(wanted, None) is None
    return {
        "connections": [_describe(client, now) for client in page],
        "next": None if is_last else page[-1].number,
    }


def recipients(clients: Iterable[Client], position: Position, event: Addressed) -> Mapping[str, object]:
    """Count the clients by their verdict on an event, and list the first ``LISTED_MAX``, as values for JSON."""
    counts = Counter({PASSED: 0, WAITING: 0, FILTERED: 0, NOT_GRANTED: 0, NO_SUBSCRIPTION: 0})
    listed: list[Mapping[str, object]] = []
    for client in clients:
        verdict = _verdict(client, position, event)
        counts[verdict] += 1
        if len(listed) < LISTED_MAX:
            listed.append({"session": client.session, "user": client.user.name, "verdict": verdict})
    return {"position": str(position), "clients": counts.total(), **counts, "sessions": listed}


def _is_behind(client: Client) -> bool:
    """Whether there are events to send, for any reason; a full ack window is one."""
    return client.state is ClientState.BEHIND or any(_unsent(one)[0] for one in client.subscriptions.values())


def _describe(client: Client, now: float) -> dict[str, Any]:
    subscriptions = [_describe_subscription(one) for one in client.subscriptions.values()]
    return {
        "number": client.number,
        "session": client.session,
        "user": client.user.name,
        "address": client.slot.address,
        "state": client.state.value,
        "connected_s": round(max(0.0, now - client.begun_at), 1),
        "behind": sum(one["behind"] for one in subscriptions),
        "behind_exactly": all(one["behind_exactly"] for one in subscriptions),
        "subscriptions": subscriptions,
    }


def _describe_subscription(subscription: Subscription) -> dict[str, Any]:
    unsent, exact = _unsent(subscription)
    destination = text(subscription.view.destination)
    if len(destination) > DESTINATION_CHARS_MAX:
        destination = destination[: DESTINATION_CHARS_MAX - 1] + "…"
    return {
        "destination": destination,
        "position": str(subscription.position),
        "behind": unsent,
        "behind_exactly": exact,
        "waits_for_acks": subscription.window is not None and subscription.window.room <= 0,
    }


def _unsent(subscription: Subscription) -> tuple[int, bool]:
    """Count the events still to be sent, and whether the number is exact: the tail may not hold all of them."""
    view, offset = subscription.view, subscription.position.offset
    if subscription.replay is not None:
        return len(view.offsets) + 1, False
    if offset >= view.last:
        return 0, True
    if offset >= view.evicted:
        return len(view.offsets) - bisect_right(view.offsets, offset), True
    return len(view.offsets) + 1, False


def _verdict(client: Client, position: Position, event: Addressed) -> str:
    granted = (client.user.grant.of(destination) for destination in destinations_of(event))
    if not any(destination is not None and covers(destination, event) for destination in granted):
        return NOT_GRANTED
    started = [found for found in client.subscriptions.values() if found.started]
    if not started:
        return NO_SUBSCRIPTION
    matching = [found for found in started if covers(found.view.destination, event)]
    if not matching:
        return FILTERED
    cursors = [found.position for found in matching]
    has_passed = any(at.epoch == position.epoch and at.offset >= position.offset for at in cursors)
    return PASSED if has_passed else WAITING


def registry(sources: Sources) -> CollectorRegistry:
    """Make a registry with the metrics of the server and of the process (memory, descriptors, CPU time)."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_ServerCollector(sources))
    ProcessCollector(registry=made)
    return made


@frozen(eq=False)
class _ServerCollector(Collector):
    _sources: Sources

    def collect(self) -> Iterable[Metric]:
        yield _gauges("build_info", "The version of the server.", "version", {__version__: 1})
        yield from self._clients()
        yield from self._recording()
        yield from self._store()
        conditions = self._sources.readiness.conditions()
        well = {name: int(condition.well) for name, condition in conditions.items()}
        yield _gauges("ready", "Whether each part is ready, as in /readyz.", "part", well)

    def _clients(self) -> Iterator[Metric]:
        sessions = self._sources.sessions
        services, durables, admission = sessions.services, sessions.durables, sessions.admission
        yield _gauge("connections", "Open connections.", len(sessions.clients))
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield _gauge("tasks", "Tasks of the server's event loop, about one for each connection.", tasks)
        yield _gauge("subscriptions", "Subscriptions of all connections.", sessions.subscriptions)
        words = "Subscriptions started, by the header resume of their RECEIPT."
        yield _counters("subscriptions_started", words, "resume", services.started)
        yield _gauge("connections_behind", "Connections with events still to be sent.", sessions.behind)
        yield _gauge("durable_subscriptions", "Durable subscriptions claimed by connections.", durables.claimed)
        words = "Durable subscriptions with acknowledgements not yet stored."
        yield _gauge("durable_subscriptions_deferred", words, durables.unwritten)
        waited = "Client requests that waited in the fair queue behind others."
        yield _counter("client_requests_queued", waited, admission.fair_queue.waited)
        yield _counter("deliveries", "Events sent, once for each subscription.", services.batches.deliveries)
        yield _counter("delivered_bytes", "Bytes of the messages that carry events.", services.batches.bytes)
        yield _counter("acks_ignored", "Acknowledgements of unknown messages.", services.acks_ignored)
        yield _counter("nacks", "Messages that clients answered with NACK.", services.nacks)
        words = "Ended connections, by disconnect reason."
        yield _counters("disconnects", words, "reason", sessions.disconnects)
        yield _gauge("client_addresses", "Client addresses with open connections.", len(admission.by_address))
        limited = admission.turned_away
        yield _counters("connections_rejected", "Connections rejected because of a limit.", "limit", limited)
        requests = {str(status): count for status, count in services.requests_refused.items()}
        yield _counters("http_requests_refused", "Requests refused in HTTP, by status.", "status", requests)
        refused = sessions.client_faults
        yield _counters("frames_refused", "Connections ended because of a frame, by STOMP error.", "error", refused)
        words = 'From the change in the database to the socket; with capture = "updated_at", from its event in the log.'
        yield _histogram("delivery_seconds", words, services.batches.latencies)

    def _recording(self) -> Iterator[Metric]:
        recorder = self._sources.recorder
        found = recorder.counts
        yield _counters("events_recorded", "Events appended by this server.", "type", recorder.events_by_type)
        yield _counter("changes_read", "Rows of the change log that were read.", found["changes"])
        yield _counter("row_faults", "Rows that could not become an event.", found["faults"])
        yield _counter("metadata_value_faults", "Metadata values that did not fit their type.", found["value_faults"])
        changes = {"kept": found["kept"], "ended": found["ended"]}
        words = "Events recorded for the current state, and objects that left it because they ended."
        yield _counters("current_state_updates", words, "outcome", changes)
        yield _gauge("recording", "Whether this server is the recorder.", int(recorder.recording))
        yield _gauge("recorder_lag_seconds", "How long changes have waited to be recorded.", recorder.lag_s)

    def _store(self) -> Iterator[Metric]:
        found, trimmed = self._sources.log.statistics(), self._sources.retention.trimmed
        yield _gauge("log_head_offset", "The newest offset that this server has read.", found["head"])
        lag_s = self._sources.log.follow_lag_s
        yield _gauge("follow_lag_seconds", "How long events in the store have waited to be read by this server.", lag_s)
        yield _gauge("tail_events", "Events held in memory.", found["events"])
        yield _gauge("tail_bytes", "Bytes of the bodies held in memory.", found["bytes"])
        yield _gauge("tail_views", "Destinations with a view of the events held in memory.", found["views"])
        yield _counter("events_trimmed", "Events deleted by retention.", trimmed["events"])
        yield _counter("changes_trimmed", "Rows of the change log deleted by retention.", trimmed["changes"])
        whole = {type_: int(is_whole) for type_, is_whole in self._sources.log.state_whole.items()}
        words = "Whether replay:current has all objects of a type of keep_current; if not, run a backfill."
        yield _gauges("current_state_complete", words, "type", whole)
        filling = {type_: int(is_filling) for type_, is_filling in self._sources.log.state_filling.items()}
        words = "Whether a backfill of a kept type has begun and is not complete yet."
        yield _gauges("backfill_running", words, "type", filling)
        behind = self._sources.log.state_behind
        yield _gauge("current_state_behind_events", "Events that are not in the current state yet.", behind)
        pages = self._sources.sessions.services.reads.state_pages
        yield _counter("current_state_pages_read", "Pages of the current state read from the event store.", pages)
        yield _histogram("store_append_seconds", "Time of an append to the event store.", self._sources.log.appending)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", words, value=value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}{name}", words, value=value)


def _labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, words: str, label: str, values: Mapping[str, int]
) -> Metric:
    family = kind(f"{PREFIX}{name}", words, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


_gauges = partial(_labelled, GaugeMetricFamily)
_counters = partial(_labelled, CounterMetricFamily)


def _histogram(name: str, words: str, latencies: Latencies) -> Metric:
    bounds = [*(repr(bound) for bound in LATENCY_BUCKETS_S), "+Inf"]
    buckets = list(zip(bounds, itertools.accumulate(latencies.counts), strict=True))
    return HistogramMetricFamily(f"{PREFIX}{name}", words, buckets=buckets, sum_value=latencies.total_s)
