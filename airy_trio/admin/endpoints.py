"""The pages of the admin port: those for programs, and the console. None of them waits.

``starting_pages`` has the probes of a server that is starting, and ``pages`` those of a running one: probes,
``/metrics``, ``/api/clients``, and the statistics that the console polls: ``/api/figures`` and ``/api/connections``.
Counts are cumulative, so two answers give a rate. ``node_of`` describes the process that answers.

``console_pages`` has the page for a browser with its files, which are in the folder ``console`` and are read once. They
load nothing from elsewhere. The content security policy that is sent with each enforces that, and allows no inline
script or style. The console receives events as a client; ``ClientEndpoint`` has the URL of the port for clients.

``connection_page`` and ``recipients`` read the clients' own state when they are called. Neither contains credentials,
or data that was sent to a client.
"""

import json
import os
import re
import socket
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, evolve, frozen
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from airy_trio import __version__
from airy_trio.admin.metrics import Sources
from airy_trio.admin.readiness import Condition
from airy_trio.admin.server import Answer, Page, PageRequest, Pages
from airy_trio.delivery.client import Client, ClientState, Subscription
from airy_trio.events.destinations import Addressed, covers, destinations_of, text
from airy_trio.events.models import TYPES
from airy_trio.log.store import Position
from airy_trio.log.tail import LATENCY_BUCKETS_S
from airy_trio.sessions.listener import Address

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


def starting_pages(conditions: Callable[[], Mapping[str, Condition]]) -> Pages:
    """Make the pages of a server that is starting: probes are answered, all other pages are 503."""

    def later(_request: PageRequest) -> Answer:
        return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "this server is starting"})

    return Pages(_probes(conditions), later)


def pages(
    sources: Sources, registry: CollectorRegistry, endpoint: "ClientEndpoint", node: Mapping[str, object]
) -> Mapping[str, Page]:
    """Make the pages of a running server. The sources and the registry's collectors are read for every request."""

    def metrics(request: PageRequest) -> Answer:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Answer(HTTPStatus.OK, encode(registry), {"content-type": content_type, **HEADERS})

    def clients(request: PageRequest) -> Answer:
        position, type_ = Position.parse(request.query.get("position", "")), request.query.get("type", "")
        if position is None or type_ not in TYPES:
            return _json(HTTPStatus.BAD_REQUEST, {"error": "position=EPOCH-OFFSET and type=TYPE are needed"})
        event = _QueriedEvent(type_, request.query.get("channel"), request.query.get("conversation"))
        return _json(HTTPStatus.OK, recipients(sources.sessions.clients, position, event))

    def figures(request: PageRequest) -> Answer:
        clients = {"url": endpoint.url(request.host), "token": endpoint.token}
        return _json(HTTPStatus.OK, {"clients": clients, "node": node, **_figures(sources)})

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
        **_probes(sources.conditions),
        "/metrics": metrics,
        "/api/clients": clients,
        "/api/figures": figures,
        "/api/connections": connections,
    }


def console_pages(endpoint: "ClientEndpoint") -> Mapping[str, Page]:
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
    batches, recorded = sessions.services.batches, recorder.statistics()
    latencies = batches.latencies
    ready, parts = _readiness(sources.conditions())
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
    found: list[dict[str, Any]] = []
    last: int | None = None
    for client in clients:
        if client.number <= after or (behind and not _is_behind(client)):
            continue
        if len(found) == limit:
            return {"connections": found, "next": last}
        found.append(_describe(client, now))
        last = client.number
    return {"connections": found, "next": None}


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
    return PASSED if any(_has_passed(found, position) for found in matching) else WAITING


def _has_passed(subscription: Subscription, position: Position) -> bool:
    at = subscription.position
    return at.epoch == position.epoch and at.offset >= position.offset
