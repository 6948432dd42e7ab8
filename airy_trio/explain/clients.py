"""What the running server says, at its admin port: which clients an event has reached, and how the server is."""

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from airy_trio.admin.server import AdminOptions
from airy_trio.log.position import Position
from airy_trio.log.store import StoredEvent

TIMEOUT_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 1 << 20
ANY_ADDRESS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - asked at the loopback address then


def lines(options: AdminOptions, position: Position, event: StoredEvent) -> Iterator[str]:
    """How many of the clients connected now have passed the event, and how many never get it."""
    if not options.port:
        yield "clients   not known: [admin] port is 0, so the server cannot be asked"
        return
    asked = {"position": str(position), "type": event.type}
    asked |= {"channel": event.channel_id} if event.channel_id is not None else {}
    asked |= {"conversation": event.conversation_id} if event.conversation_id is not None else {}
    found = _get(options, f"/api/clients?{urlencode(asked)}")
    if isinstance(found, str):
        yield f"clients   not known: {found}"
        return
    yield (
        f"clients   {found['clients']} connected: {found['passed']} have passed it, {found['waiting']} have not yet, "
        f"{found['filtered']} subscribe to other destinations, {found['no_subscription']} to none, "
        f"{found['not_granted']} may not read it"
    )
    for one in found["sessions"]:
        user = "" if one["user"] is None else f" of {one['user']}"
        yield f"          session {one['session']}{user}: {one['verdict'].replace('_', ' ')}"
    yield from readiness_lines(options)


def readiness_lines(options: AdminOptions) -> Iterator[str]:
    """What is not well."""
    found = _get(options, "/readyz")
    if isinstance(found, str):
        yield f"server    {found}"
        return
    parts = {name: part for name, part in found.items() if isinstance(part, dict) and not part["well"]}
    yield from (f"server    {name} is not well: {part['reason']}" for name, part in parts.items())


def _get(options: AdminOptions, path: str) -> Mapping[str, Any] | str:
    """The answer, or why there is none, in words."""
    host = "127.0.0.1" if options.host in ANY_ADDRESS else options.host
    connection = http.client.HTTPConnection(host, options.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = json.loads(answer.read(ANSWER_BYTES_MAX))
    except OSError:
        return f"no server answers at the admin port {host}:{options.port}; it does not run here"
    except (http.client.HTTPException, ValueError):
        return f"something else answers at the admin port {host}:{options.port}"
    finally:
        connection.close()
    if not isinstance(body, dict):
        return f"something else answers at the admin port {host}:{options.port}"
    return str(body["error"]) if "error" in body else body
