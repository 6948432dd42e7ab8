"""``airy-trio health``: check the health of each process of a server on this machine, through its admin port.

``explain`` asks the same processes for their clients. Requests block and use the standard library's client: a probe
runs every few seconds, and starting Trio would take longer than the request.
"""

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from airy_trio.settings import Settings

TIMEOUT_S: Final = 2.0
ANSWER_BYTES_MAX: Final = 1 << 20
ANY_ADDRESS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - a server there is reached at the loopback address

Answer = Mapping[str, Any] | str
"""The JSON object that a process returned, or the reason why there is none."""


def faults(settings: Settings, *, ready: bool) -> Iterator[str]:
    """Yield a line for each process that is not alive; with ``ready``, for each part that is not ready either."""
    if not settings.admin.port:
        yield "admin.port is 0, so the server has no admin port"
    path, name = ("/readyz", "ready") if ready else ("/livez", "alive")
    for process, answer in answers(settings, path, (name,), settings.listener.processes):
        if isinstance(answer, str):
            yield f"{process}{answer}"
            continue
        for part, state in answer.items():
            if isinstance(state, dict) and not state["well"]:
                yield f"{process}{part} is not ready: {state['reason']}"


def answers(
    settings: Settings, path: str, names: Sequence[str], processes: int, timeout_s: float = TIMEOUT_S
) -> Iterator[tuple[str, Answer]]:
    """Ask the first processes, workers before the recorder; yield a prefix that names each, and its answer.

    An answer without all of ``names`` is not from a server of ours.
    """
    host = "127.0.0.1" if settings.admin.host in ANY_ADDRESS else settings.admin.host
    for number, port in enumerate(settings.admin.ports(processes)):
        prefix = f"worker {number}: " if settings.listener.workers > 1 else ""
        answer = _get(http.client.HTTPConnection(host, port, timeout=timeout_s), path, names, settings.admin.token)
        yield "recorder: " if number == settings.listener.recorder else prefix, answer


def _get(connection: http.client.HTTPConnection, path: str, names: Sequence[str], token: str) -> Answer:
    where = f"the admin port {connection.host}:{connection.port}"
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        if answer.status == HTTPStatus.UNAUTHORIZED:
            return f"{where} has another token; the server was started with other settings"
        body = json.loads(answer.read(ANSWER_BYTES_MAX))
    except OSError:
        return f"no server answers at {where}; it is not running here"
    except (http.client.HTTPException, ValueError):
        return f"another program answers at {where}"
    finally:
        connection.close()
    return body if isinstance(body, dict) and body.keys() >= {*names} else f"another program answers at {where}"
