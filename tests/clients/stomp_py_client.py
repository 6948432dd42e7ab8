"""stomp.py's WebSocket adapter (STOMP 1.2). It does not reconnect, so this program does, as its manual recommends.

Arguments: ``program``.
"""

import os
import signal
import threading
from typing import Protocol

import stomp
from stomp.adapter.ws import WSStompConnection

from tests.clients.program import Arguments, Printer, report

DISCONNECT_RECEIPT = "the end"
RECEIPT_TIMEOUT_S = 10.0
SUBSCRIPTION = "0"


class Frame(Protocol):
    """A frame as the client parses it."""

    headers: dict[str, str]
    body: str


class Listener(stomp.ConnectionListener):  # type: ignore[misc]  # it has no types
    """Subscribes on every connect, prints messages, reports events, and reconnects until it is stopped.

    Each connection is a new object: a reused one stops its heart-beats if its old heart-beat thread has not ended yet.
    """

    def __init__(self, arguments: Arguments, done: threading.Event) -> None:
        self._arguments = arguments
        self._done = done
        self._printer = Printer(arguments, done.set)
        self._receipt_came = threading.Event()
        self._connection: WSStompConnection | None = None

    def connect(self) -> None:
        connection = WSStompConnection(
            [(self._arguments.host, self._arguments.port)],
            ws_path=self._arguments.path,
            heartbeats=(self._arguments.heartbeat_ms, self._arguments.heartbeat_ms),
            reconnect_attempts_max=-1,
            reconnect_sleep_max=0.5,
        )
        if self._arguments.tls is not None:
            authority = os.environ["WEBSOCKET_CLIENT_CA_BUNDLE"]
            connection.set_ssl([(self._arguments.host, self._arguments.port)], ca_certs=authority)
        self._connection = connection
        connection.set_listener("", self)
        connection.connect(passcode=self._arguments.token or None)

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.disconnect(receipt=DISCONNECT_RECEIPT)
            self._receipt_came.wait(RECEIPT_TIMEOUT_S)

    def on_connected(self, frame: Frame) -> None:
        if self._connection is not None:
            headers = self._arguments.subscribe_headers
            self._connection.subscribe("/events", id=SUBSCRIPTION, ack="auto", headers=headers)
        report("connected", headers=frame.headers)

    def on_message(self, frame: Frame) -> None:
        self._printer.print(frame.body, frame.headers)

    def on_heartbeat(self) -> None:
        report("heart-beat")

    def on_error(self, frame: Frame) -> None:
        report("error", headers=frame.headers, body=frame.body)

    def on_receipt(self, frame: Frame) -> None:
        if frame.headers["receipt-id"] == DISCONNECT_RECEIPT:
            report("disconnected")
            self._receipt_came.set()

    def on_disconnected(self) -> None:
        report("closed")
        if not self._done.is_set():
            self.connect()


def main(arguments: Arguments) -> None:
    """Print messages until the last one or SIGTERM."""
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    listener = Listener(arguments, done)
    listener.connect()
    done.wait()
    listener.disconnect()


if __name__ == "__main__":
    main(Arguments.given())
