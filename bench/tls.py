"""The cost of TLS: the server's CPU time of a delivery to clients with TLS, compared with the same without.

``python -m bench.tls``. Events are sent one at a time (50 a second), so that each is a write and a record of its
own: the most expensive case. Only the server's processor time is measured, so clients in Python are as good as those in
C if they keep up: each must have received everything by the end, once and in order.
"""

import argparse
import os
import re
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import trustme
from attrs import define, frozen

from bench import report
from bench.pace import at_rate
from bench.processes import ROOT, START_TIMEOUT_S, MeasuringFailedError
from bench.targets import Row, line

TARGET: Final = 1.8
RATE: Final = 50
CONNECT_TIMEOUT_S: Final = 10
READ_BYTES: Final = 65_536
_GO: Final = struct.pack("=Q", 0)
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_NUMBER: Final = re.compile(rb"\nmessage-id:\w+-(\d+)\n")
_UPGRADE: Final = (
    b"GET /ws.communication HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@frozen
class Files:
    """A certificate for this machine in files, and a context that trusts it."""

    certificate: str
    key: str
    trusting: ssl.SSLContext

    @property
    def options(self) -> list[str]:
        """The options of the server."""
        return ["--tls-certificate", self.certificate, "--tls-key", self.key]


@define
class Reader:
    """One client. ``first`` and ``last``: numbers of events. ``held``: the beginning of an incomplete frame."""

    sock: socket.socket
    held: bytes = b""
    first: int = 0
    last: int = 0

    def read(self) -> None:
        """Read all available data. Raises ``MeasuringFailedError`` for a gap, a duplicate, or the end."""
        while True:
            try:
                data = self.sock.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            if not data:
                raise MeasuringFailedError("the server closed a connection")
            self._check(data)

    def _check(self, data: bytes) -> None:
        data = self.held + data
        end = 0
        for found in _NUMBER.finditer(data):
            number, end = int(found[1]), found.end()
            if self.last and number != self.last + 1:
                raise MeasuringFailedError(f"event {number} came after {self.last}")
            self.first, self.last = self.first or number, number
        self.held = data[max(end, len(data) - 100) :]


@frozen
class Figures:
    """The figures of one round.

    ``cpu_us``: the server's processor time for a delivery. ``connect_ms``: the same for a connection, up to the RECEIPT
    of its SUBSCRIBE. ``kib``: by how much the server grew for each connection.
    """

    cpu_us: float
    connect_ms: float
    kib: float
    deliveries: int


def measure(clients: int, measure_s: float, files: Files | None) -> Figures:
    """Serve ``clients`` clients for a while. Raises ``MeasuringFailedError``."""
    with _serving([] if files is None else files.options) as (process, port):
        before, small = _cpu_s(process.pid), _resident_kib(process.pid)
        readers = [Reader(_connected(port, files)) for _ in range(clients)]
        connecting_s, grown_kib = _cpu_s(process.pid) - before, _resident_kib(process.pid) - small
        try:
            assert process.stdin is not None
            process.stdin.write(_GO)
            process.stdin.flush()
            _read_for(readers, 0.5)  # warm up: the first deliveries are slower
            before, had = _cpu_s(process.pid), sum(reader.last for reader in readers)
            _read_for(readers, measure_s)
            spent_s, deliveries = _cpu_s(process.pid) - before, sum(reader.last for reader in readers) - had
        finally:
            for reader in readers:
                reader.sock.close()
    expected = clients * RATE * measure_s
    if any(reader.first != 1 for reader in readers) or not 0.9 * expected < deliveries < 1.1 * expected:
        raise MeasuringFailedError(f"{deliveries} deliveries instead of {expected:.0f}: a client did not keep up")
    return Figures(spent_s / deliveries * 1e6, connecting_s / clients * 1e3, grown_kib / clients, deliveries)


@contextmanager
def _serving(options: Sequence[str]) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start the server; it ends with its standard input."""
    command = [sys.executable, "-m", "bench.server", *at_rate(RATE).arguments(), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.strip().isdigit():
                raise MeasuringFailedError("the server did not start")
            yield process, int(line)
            assert process.stdin is not None
            process.stdin.close()
            process.wait(START_TIMEOUT_S)
        finally:
            process.kill()


def _connected(port: int, files: Files | None) -> socket.socket:
    """Connect a client up to its RECEIPT, and make it non-blocking."""
    sock = socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT_S)
    if files is not None:
        sock = files.trusting.wrap_socket(sock, server_hostname="localhost")
    sock.sendall(_UPGRADE)
    _until(sock, b"\r\n\r\n")
    sock.sendall(_masked(b"CONNECT\naccept-version:1.2\n\n\0"))
    _until(sock, b"\0")
    sock.sendall(_masked(b"SUBSCRIBE\nid:0\ndestination:/events\nreplay:none\nreceipt:r\n\n\0"))
    _until(sock, b"\0")
    sock.settimeout(0)
    return sock


def _until(sock: socket.socket, end: bytes) -> None:
    data = b""
    while not data.endswith(end):
        more = sock.recv(READ_BYTES)
        if not more:
            raise MeasuringFailedError(f"refused: {data!r}")
        data += more


def _masked(frame: bytes) -> bytes:
    """Return a text message of a client, with the mask 0."""
    return bytes([0x81, 0x80 | len(frame)]) + bytes(4) + frame


def _read_for(readers: Sequence[Reader], seconds: float) -> None:
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader.sock, selectors.EVENT_READ, reader)
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                key.data.read()


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process, with the kernel's work for it."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident_kib(pid: int) -> float:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1024


def _certified(folder: str) -> Files:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    certificate, key = f"{folder}/server.pem", f"{folder}/server.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return Files(certificate, key, trusting)


def main() -> int:
    """Measure interleaved rounds and print the ratio; return 1 if a round could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; the figures are their medians")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--measure-s", type=float, default=5, help="duration of each round")
    arguments = parser.parse_args()
    rounds: list[tuple[Figures, Figures]] = []
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        files = _certified(folder)
        for number in range(1, arguments.rounds + 1):
            try:
                plain, tls = (measure(arguments.clients, arguments.measure_s, each) for each in (None, files))
            except MeasuringFailedError as error:
                print(f"bench: {error}", file=sys.stderr)
                return 1
            rounds.append((plain, tls))
            for name, figures in (("plain", plain), ("TLS", tls)):
                print(
                    f"round {number}/{arguments.rounds}  {name:<5} {figures.cpu_us:6.2f} µs a delivery  "
                    f"{figures.connect_ms:5.2f} ms and {figures.kib:5.1f} KiB a connection  "
                    f"({figures.deliveries} deliveries)",
                    flush=True,
                )
    ratio = median(tls.cpu_us / plain.cpu_us for plain, tls in rounds)
    row = Row(
        title=f"TLS, {arguments.clients} clients, unbatched: CPU of a delivery against plain",
        bound=TARGET,
        value=ratio,
        unit="×",
        more_is_worse=True,
    )
    print(line(row))
    how = f"`python -m bench.tls`, {datetime.now(UTC):%Y-%m-%d}; {len(rounds)} interleaved rounds, the median."
    loads.append(os.getloadavg()[0])
    lines = [how, "", *report.machine(loads), "", *report.targets([row])]
    report.write(report.DELIVERY, {"TLS": lines}, Path(__file__).with_name("RESULTS.md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
