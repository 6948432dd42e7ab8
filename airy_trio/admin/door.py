"""Where a browser that has a page of the admin port finds the port for clients, and what it needs to come in."""

import re
from typing import Final

_NAME: Final = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_.-]{1,253}")
_ORIGIN: Final = re.compile(r"wss?://[^/]+")
WEBSOCKET_URL: Final = r"(?:wss?://(?:\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z_.-]{1,253})(?::[0-9]{1,5})?/[!-~]*)?"
"""What ``[admin] websocket_url`` may be."""


class Door:
    """The port for clients as a browser sees it.

    ``url``: its WebSocket URL, where that is another than the listener's own (a proxy, a certificate for a name); ""
    otherwise. ``token``: whether CONNECT needs one. ``host``, ``port``: what the listener was told; see ``opened``.
    """

    def __init__(  # noqa: PLR0913 - what an address is made of
        self, url: str, *, host: str, port: int, path: str, tls: bool, token: bool
    ) -> None:
        self._url = url
        self._host = host
        self._port = port
        self._rest = path
        self._scheme = "wss" if tls else "ws"
        self.token = token

    def opened(self, host: str, port: int) -> None:
        """Take note of where the listener is really bound."""
        self._host, self._port = host, port

    def url(self, host: str) -> str | None:
        """The WebSocket URL for a page that was asked for under ``host``, a value of the header Host.

        A listener on one address is found there, one on all addresses under the page's own name. None: there is no
        port yet, or no such name.
        """
        if self._url:
            return self._url
        here = _NAME.match(host)
        if not self._port or here is None:
            return None
        name = here[0] if self._host in {"0.0.0.0", "::", ""} else self._host  # noqa: S104 - it is looked at only
        if ":" in name and not name.startswith("["):
            name = f"[{name}]"
        return f"{self._scheme}://{name}:{self._port}{self._rest}"

    def origin(self, host: str) -> str | None:
        """Scheme, host and port of that URL, for a Content-Security-Policy."""
        url = self.url(host)
        found = None if url is None else _ORIGIN.match(url)
        return None if found is None else found[0]
