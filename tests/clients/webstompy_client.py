"""webstompy (STOMP 1.1). It has no reconnect, no DISCONNECT, no heart-beats and no headers for SUBSCRIBE.

This program reconnects, and closes the WebSocket at its end. Arguments: ``program``; LAST-EVENT-ID cannot be sent.
"""

import signal
import threading
import time
from typing import Protocol

import websocket
import webstompy

from tests.clients.program import Arguments, Printer, report

CONNECT_TIMEOUT_S = 10.0
RECONNECT_S = 0.5
SUBSCRIPTION = "0"


class Frame(Protocol):
    """A message of the WebSocket as the client parses it."""

    command: bytes
    header: list[tuple[bytes, bytes]]
    message: bytes


class Listener(webstompy.StompListener):  # type: ignore[misc]  # it has no types
    """Prints messages and reports everything else. The client's own thread calls it for every frame."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def on_message(self, frame: Frame) -> None:
        headers = {name.decode(): value.decode() for name, value in frame.header}
        match frame.command:
            case b"CONNECTED":
                report("connected", headers=headers)
            case b"MESSAGE":
                self._printer.print(frame.message.decode(), headers)
            case b"ERROR":
                report("error", headers=headers, body=frame.message.decode())
            case _:
                report("heart-beat" if not frame.command else "unknown")


def connected(arguments: Arguments, printer: Printer) -> tuple[websocket.WebSocket, webstompy.StompConnection]:
    """Connect and subscribe. Raises ``OSError`` if no server listens."""
    socket = websocket.create_connection(arguments.url)
    connection = webstompy.StompConnection(connector=socket)
    connection.add_listener(Listener(printer))
    connection.connect(passcode=arguments.token or None, timeout=CONNECT_TIMEOUT_S)
    connection.subscribe("/events", id=SUBSCRIPTION)
    return socket, connection


def main(arguments: Arguments) -> None:
    """Print messages until the last one or SIGTERM."""
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    printer = Printer(arguments, done.set)
    while not done.is_set():
        try:
            socket, connection = connected(arguments, printer)
        except OSError:
            time.sleep(RECONNECT_S)
            continue
        while connection.alive and not done.wait(RECONNECT_S):
            pass
        if done.is_set():
            socket.close()
        else:
            report("closed")


if __name__ == "__main__":
    main(Arguments.given())
