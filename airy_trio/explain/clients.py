"""What the running server says, at the admin port of each worker: which clients an event has reached, how it is."""

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
ANY_ADDRESS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - asked at the loopback address then


VERDICTS: Final = ("clients", "passed", "waiting", "filtered", "no_subscription", "not_granted")


@frozen
class Servers:
    """The admin ports of one server: of its workers in their order, and of the process that records for several."""

    host: str
    workers: range
    recorder: range

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those that the settings name."""
        host, workers = settings.admin.host, settings.listener.workers
        ports = settings.admin.ports(settings.listener.processes)
        return cls("127.0.0.1" if host in ANY_ADDRESS else host, ports[:workers], ports[workers:])

    def of_workers(self, path: str, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
        """What each worker answers, with these names in it, or why there is no answer, in words.

        Before it who that is, where there are several.
        """
        for number, port in enumerate(self.workers):
            yield f"worker {number}: " if len(self.workers) > 1 else "", _get(self.host, port, path, names)

    def of_all(self, path: str, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
        """The same of each process."""
        yield from self.of_workers(path, names)
        for port in self.recorder:
            yield "recorder: ", _get(self.host, port, path, names)


def lines(servers: Servers, position: Position, event: StoredEvent) -> Iterator[str]:
    """How many of the clients connected now, to whichever worker, have passed the event, and how many never get it."""
    if not servers.workers:
        yield "clients   not known: [admin] port is 0, so the server cannot be asked"
        return
    asked = {"position": str(position), "type": event.type}
    asked |= {"channel": event.channel_id} if event.channel_id is not None else {}
    asked |= {"conversation": event.conversation_id} if event.conversation_id is not None else {}
    found = [answer for _, answer in servers.of_workers(f"/api/clients?{urlencode(asked)}", VERDICTS)]
    answers = [answer for answer in found if not isinstance(answer, str)]
    if not answers:
        yield "clients   not known"
        return
    counts = {verdict: sum(answer[verdict] for answer in answers) for verdict in VERDICTS}
    where = "" if len(answers) == len(found) else f" to the {len(answers)} of {len(found)} workers that answer"
    yield (
        f"clients   {counts['clients']} connected{where}: "
        f"{counts['passed']} have passed it, {counts['waiting']} have not yet, "
        f"{counts['filtered']} subscribe to other destinations, {counts['no_subscription']} to none, "
        f"{counts['not_granted']} may not read it"
    )
    for one in chain.from_iterable(answer["sessions"] for answer in answers):
        user = "" if one["user"] is None else f" of {one['user']}"
        yield f"          session {one['session']}{user}: {one['verdict'].replace('_', ' ')}"


def readiness_lines(servers: Servers) -> Iterator[str]:
    """What is not well, and who does not answer."""
    for who, answer in servers.of_all("/readyz", ("ready",)):
        if isinstance(answer, str):
            yield f"server    {who}{answer}"
            continue
        parts = {name: part for name, part in answer.items() if isinstance(part, dict) and not part["well"]}
        yield from (f"server    {who}{name} is not well: {part['reason']}" for name, part in parts.items())


def _get(host: str, port: int, path: str, names: Sequence[str]) -> Mapping[str, Any] | str:
    """The answer, or why there is none, in words."""
    something_else = f"something else answers at the admin port {host}:{port}"
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = json.loads(answer.read(ANSWER_BYTES_MAX))
    except OSError:
        return f"no server answers at the admin port {host}:{port}; it does not run here"
    except (http.client.HTTPException, ValueError):
        return something_else
    finally:
        connection.close()
    return body if isinstance(body, dict) and body.keys() >= {*names} else something_else
