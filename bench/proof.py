"""Prove before any measurement that the load client detects each kind of fault.

A server in a thread serves one connection and sends the given messages. WebSocket and STOMP are written by hand.
"""

import socket
import threading
from collections.abc import Sequence
from typing import Final

from bench.processes import Figures, MeasuringFailedError, loading

GOOD: Final = ("aaaaaa-1", "aaaaaa-2")
FAULTY: Final[dict[str, tuple[str, ...]]] = {
    "gaps": (*GOOD, "aaaaaa-5"),
    "duplicates": (*GOOD, "aaaaaa-2", "aaaaaa-3"),
    "foreign_epochs": (*GOOD, "bbbbbb-3"),
    "malformed": (*GOOD, "no position"),
}
_UPGRADED: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def prove() -> None:
    """Raise ``MeasuringFailedError`` if the load client misses a fault, or reports one without cause."""
    _expect(GOOD, {})
    for fault, positions in FAULTY.items():
        _expect(positions, {fault: 1})
    _expect([*GOOD, "aaaaaa-3"], {"malformed": 1}, together=True)


def _expect(positions: Sequence[str], wanted: dict[str, int], *, together: bool = False) -> None:
    figures = _figures(positions, together=together)
    found = {fault: figures[fault] for fault in FAULTY if figures[fault]}
    if found != wanted:
        raise MeasuringFailedError(f"the load client received {positions} and reported {found} instead of {wanted}")


def _figures(positions: Sequence[str], *, together: bool) -> Figures:
    """Send MESSAGE frames with these positions; ``together``: in one WebSocket message, which is not allowed."""
    messages = [f"MESSAGE\nmessage-id:{position}\ncontent-length:2\n\n{{}}\0".encode() for position in positions]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sent = [b"".join(messages)] if together else messages
        thread = threading.Thread(target=_serve, args=(listening, sent))
        thread.start()
        options = {
            "port": listening.getsockname()[1],
            "clients": 1,
            "settle-ms": 100,
            "warm-up-ms": 1,
            "measure-ms": 50,
        }
        with loading(options, quiet=True) as client:
            figures = client.figures()
        thread.join()
    return figures


def _serve(listening: socket.socket, messages: Sequence[bytes]) -> None:
    connection, _ = listening.accept()
    with connection:
        for answer in (_UPGRADED, _text(b"CONNECTED\nversion:1.2\n\n\0"), _text(b"RECEIPT\nreceipt-id:s\n\n\0")):
            connection.recv(4096)
            connection.sendall(answer)
        connection.sendall(b"".join(map(_text, messages)))
        while connection.recv(4096):
            pass


def _text(payload: bytes) -> bytes:
    """Return a WebSocket text message."""
    if len(payload) <= 125:  # noqa: PLR2004 - RFC 6455, section 5.2
        return b"\x81" + bytes([len(payload)]) + payload
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload
