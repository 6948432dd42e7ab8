"""webstompy (STOMP 1.1). It has no reconnect, no DISCONNECT, no heart-beats and no headers of SUBSCRIBE.

This program connects again, and closes the WebSocket at its end. Arguments: ``program``; LAST-EVENT-ID cannot be sent.
"""

import signal
import threading
import time
from typing import Protocol

import websocket
import webstompy

from tests.clients.program import Arguments, Printer, tell

CONNECT_TIMEOUT_S = 10.0
RECONNECT_S = 0.5
SUBSCRIPTION = "0"


class Frame(Protocol):
    """What the client makes of a message of the WebSocket."""

    command: bytes
    header: list[tuple[bytes, bytes]]
    message: bytes


class Listener(webstompy.StompListener):  # type: ignore[misc]  # it has no types
    """Prints and tells what comes; called by the client's own thread for every frame."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def on_message(self, frame: Frame) -> None:
        headers = {name.decode(): value.decode() for name, value in frame.header}
        match frame.command:
            case b"CONNECTED":
                tell("connected", headers=headers)
            case b"MESSAGE":
                self._printer.print(frame.message.decode(), headers)
            case b"ERROR":
                tell("error", headers=headers, body=frame.message.decode())
            case _:
                tell("heart-beat" if not frame.command else "unknown")


def connected(arguments: Arguments, printer: Printer) -> tuple[websocket.WebSocket, webstompy.StompConnection]:
    """Connect and subscribe; raises ``OSError`` where nobody listens."""
    socket = websocket.create_connection(arguments.url)
    connection = webstompy.StompConnection(connector=socket)
    connection.add_listener(Listener(printer))
    connection.connect(passcode=arguments.token or None, timeout=CONNECT_TIMEOUT_S)
    connection.subscribe("/events", id=SUBSCRIPTION)
    return socket, connection


def main(arguments: Arguments) -> None:
    """Print messages until there were enough, or SIGTERM."""
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
            tell("closed")


if __name__ == "__main__":
    main(Arguments.given())
