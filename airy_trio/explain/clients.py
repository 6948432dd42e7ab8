"""Ask the running server, at the admin port of each worker, which clients are past an event, and its readiness."""

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Self
from urllib.parse import urlencode

from attrs import frozen

from airy_trio.log.position import Position
from airy_trio.log.store import StoredEvent
from airy_trio.settings import Settings

TIMEOUT_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 1 << 20
ANY_ADDRESS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - a server that listens there is asked at the loopback address
VERDICTS: Final = ("clients", "passed", "waiting", "filtered", "no_subscription", "not_granted")


@frozen
class Servers:
    """The admin ports of one server: those of its workers in order, and of the recorder process if there is one."""

    host: str
    workers: range
    recorder: range

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the ports that the settings name."""
        host, workers = settings.admin.host, settings.listener.workers
        ports = settings.admin.ports(settings.listener.processes)
        return cls("127.0.0.1" if host in ANY_ADDRESS else host, ports[:workers], ports[workers:])

    def of_workers(self, path: str, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
        """Yield the answer of each worker, or why there is none, after a prefix that names the worker if needed.

        An answer without all of ``names`` is not from a server of ours.
        """
        for number, port in enumerate(self.workers):
            yield f"worker {number}: " if len(self.workers) > 1 else "", _get(self.host, port, path, names)

    def of_all(self, path: str, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
        """Yield the same for each process, the recorder included."""
        yield from self.of_workers(path, names)
        for port in self.recorder:
            yield "recorder: ", _get(self.host, port, path, names)


def lines(servers: Servers, position: Position, event: StoredEvent) -> Iterator[str]:
    """Yield how many connected clients are past the event: it was sent to them, or they subscribed later.

    The others will receive it, or never will, for the reasons that are counted.
    """
    if not servers.workers:
        yield "clients   not known: [admin] port is 0, so the server has no admin port"
        return
    query = {"position": str(position), "type": event.type}
    query |= {"channel": event.channel_id} if event.channel_id is not None else {}
    query |= {"conversation": event.conversation_id} if event.conversation_id is not None else {}
    found = [answer for _, answer in servers.of_workers(f"/api/clients?{urlencode(query)}", VERDICTS)]
    answers = [answer for answer in found if not isinstance(answer, str)]
    if not answers:
        yield "clients   not known"
        return
    counts = {verdict: sum(answer[verdict] for answer in answers) for verdict in VERDICTS}
    where = "" if len(answers) == len(found) else f" to the {len(answers)} of {len(found)} workers that answer"
    yield (
        f"clients   {counts['clients']} connected{where}: "
        f"{counts['passed']} are past it, {counts['waiting']} are not yet, "
        f"{counts['filtered']} subscribe to other destinations, {counts['no_subscription']} to none, "
        f"{counts['not_granted']} may not read it"
    )
    for session in chain.from_iterable(answer["sessions"] for answer in answers):
        user = "" if session["user"] is None else f" of {session['user']}"
        yield f"          session {session['session']}{user}: {session['verdict'].replace('_', ' ')}"


def readiness_lines(servers: Servers) -> Iterator[str]:
    """Yield a line for each condition that is not met, and for each process that does not answer."""
    for name, answer in servers.of_all("/readyz", ("ready",)):
        if isinstance(answer, str):
            yield f"server    {name}{answer}"
            continue
        for condition, state in answer.items():
            if isinstance(state, dict) and not state["well"]:
                yield f"server    {name}{condition} is not ready: {state['reason']}"


def _get(host: str, port: int, path: str, names: Sequence[str]) -> Mapping[str, Any] | str:
    """Return the answer, or why there is none, in words."""
    other_program = f"another program answers at the admin port {host}:{port}"
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = json.loads(answer.read(ANSWER_BYTES_MAX))
    except OSError:
        return f"no server answers at the admin port {host}:{port}; it is not running here"
    except (http.client.HTTPException, ValueError):
        return other_program
    finally:
        connection.close()
    return body if isinstance(body, dict) and body.keys() >= {*names} else other_program
