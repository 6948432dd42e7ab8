"""The common part of the Python clients: arguments and output, which are those of ``program.mjs``.

python -m tests.clients.PROGRAM URL [LAST-EVENT-ID] [COUNT]
"""

import json
import os
import ssl
import sys
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

from attrs import define, field, frozen

DEFAULT_HEARTBEAT_MS = 10_000


@frozen
class Arguments:
    """The arguments from the command line and the environment."""

    url: str
    last_event_id: str
    count: int
    token: str
    heartbeat_ms: int

    @classmethod
    def given(cls) -> Self:
        url, last_event_id, count = (*sys.argv[1:], "", "")[:3]
        return cls(
            url=url,
            last_event_id=last_event_id,
            count=int(count or 0),
            token=os.environ.get("TOKEN", ""),
            heartbeat_ms=int(os.environ.get("HEARTBEAT_MS") or DEFAULT_HEARTBEAT_MS),
        )

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The context for a wss:// URL. It trusts the authority that the environment names."""
        return ssl.create_default_context() if urlsplit(self.url).scheme == "wss" else None

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def subscribe_headers(self) -> dict[str, str]:
        replay = {"replay": value} if (value := os.environ.get("REPLAY")) else {}
        return replay | ({"last-event-id": self.last_event_id} if self.last_event_id else {})


@define
class Printer:
    """Prints messages, and calls ``stop`` after the last one. ``stop`` may be called from any thread."""

    arguments: Arguments
    stop: Callable[[], object]
    _received: int = field(default=0, init=False)

    def print(self, body: str, headers: dict[str, str]) -> None:
        if self.arguments.count and self._received == self.arguments.count:
            return
        self._received += 1
        sys.stdout.write(json.dumps({"body": body, "headers": headers}) + "\n")
        sys.stdout.flush()
        if self._received == self.arguments.count:
            self.stop()


def report(event: str, **facts: object) -> None:
    """Report what happens to the connection."""
    sys.stderr.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stderr.flush()
