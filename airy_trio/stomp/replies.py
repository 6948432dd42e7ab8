"""The frames that a server answers with, MESSAGE aside; whether one may be written now is not known here.

Values of our own must be ``encoder.plain``, else ``LocalProtocolError`` is raised.
"""

from collections.abc import Iterable

from airy_trio.stomp import encoder
from airy_trio.stomp.frames import Frame, Version
from airy_trio.stomp.options import ConnectionOptions

Headers = Iterable[tuple[str, str]]


def connected(options: ConnectionOptions, session: str, version: Version) -> bytes:
    """Write CONNECTED, always with all four headers: a client is known to crash without ``heart-beat``."""
    return encoder.own_frame(
        "CONNECTED",
        ("version", version.value),
        ("session", session),
        ("server", options.server),
        ("heart-beat", f"{options.heartbeat_ms},{options.heartbeat_ms}"),
    )


def receipt(version: Version, receipt_id: str, headers: Headers) -> bytes:
    """Write RECEIPT with further headers of our own."""
    return encoder.own_frame("RECEIPT", *headers, first=encoder.header("receipt-id", receipt_id, version))


def error(version: Version | None, token: str, prose: str, receipt_id: str | None, headers: Headers) -> bytes:
    """Write ERROR: ``message`` is the token, the body is the prose. Version None: none was agreed."""
    body = prose.encode()
    own = [("message", token), ("content-type", "text/plain"), ("content-length", str(len(body))), *headers]
    asked = [] if receipt_id is None else [("receipt-id", receipt_id)]
    return encoder.encode(Frame("ERROR", (*_plain(own), *asked), body), version)


def _plain(headers: Headers) -> list[tuple[str, str]]:
    return [(name, encoder.plain(value)) for name, value in headers]
