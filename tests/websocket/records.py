"""TLS records made by hand, which no client can be made to send. Keys come from the key log of a real handshake.

TLS 1.3 (RFC 8446, sections 5.2 and 7) and 1.2 (RFC 5246 section 6.3, RFC 5288), each with AES-256-GCM and SHA-384.
"""

import hashlib
import hmac
import ssl
import struct
from enum import IntEnum
from pathlib import Path

import trio
import trio.testing
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from airy_trio.websocket.tls import TlsTransport
from tests.certificates import trusting
from tests.memory_transport import MemoryTransport

SECRET_BYTES = 48
KEY_BYTES = 32
IV_BYTES = 12
HEADER = struct.Struct("!BHH")
TLS_1_2 = 0x0303
CIPHER_1_2 = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
KEY_UPDATE = b"\x18\x00\x00\x01"
"""The header of a KeyUpdate. The next octet is 1 if an answer is requested, otherwise 0."""
CLIENT_HELLO = b"\x01\x00\x00\x00"


class Kind(IntEnum):
    ALERT = 21
    HANDSHAKE = 22
    DATA = 23


class Direction:
    """One direction in TLS 1.3: the keys of a traffic secret, and the number of the next record."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._number = 0
        self._aead = AESGCM(_expanded(secret, "key", KEY_BYTES))
        self._iv = _expanded(secret, "iv", IV_BYTES)

    def next(self) -> "Direction":
        """Return the direction after a key update."""
        return Direction(_expanded(self._secret, "traffic upd", SECRET_BYTES))

    def seal(self, kind: Kind, content: bytes) -> bytes:
        inner = content + bytes([kind])
        header = HEADER.pack(Kind.DATA, TLS_1_2, len(inner) + 16)
        return header + self._aead.encrypt(self._nonce(), inner, header)

    def open(self, record: bytes) -> tuple[Kind, bytes]:
        inner = self._aead.decrypt(self._nonce(), record[5:], record[:5])
        return Kind(inner[-1]), inner[:-1]

    def _nonce(self) -> bytes:
        number, self._number = self._number, self._number + 1
        return bytes(a ^ b for a, b in zip(self._iv, number.to_bytes(IV_BYTES, "big"), strict=True))


class OldDirection:
    """The client's direction in TLS 1.2: its key, after the ``Finished`` that was record 0."""

    def __init__(self, master: bytes, client_random: bytes, server_random: bytes) -> None:
        block = _prf(master, b"key expansion" + server_random + client_random, 2 * KEY_BYTES + 8)
        self._aead, self._salt = AESGCM(block[:KEY_BYTES]), block[2 * KEY_BYTES : 2 * KEY_BYTES + 4]
        self._number = 1

    def seal(self, kind: Kind, content: bytes) -> bytes:
        number, self._number = self._number.to_bytes(8, "big"), self._number + 1
        sealed = self._aead.encrypt(self._salt + number, content, number + HEADER.pack(kind, TLS_1_2, len(content)))
        return HEADER.pack(kind, TLS_1_2, len(number + sealed)) + number + sealed


def split(data: bytes) -> list[bytes]:
    """Return the records in the output of a server."""
    records = []
    while data:
        size = HEADER.size + HEADER.unpack_from(data)[2]
        records.append(data[:size])
        data = data[size:]
    return records


class Peer:
    """A client in memory at the other end of a transport. After its handshake a test may continue by hand."""

    def __init__(self, below: MemoryTransport, version: ssl.TLSVersion | None = None, keys: Path | None = None) -> None:
        context = trusting(version)
        context.set_ciphers(CIPHER_1_2)  # only for TLS 1.2; those of TLS 1.3 are the default
        if keys is not None:
            context.keylog_filename = str(keys)
        self._below = below
        self._keys = keys
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self.handshake_octets = b""  # the server's octets in the handshake

    async def shake_hands(self, transport: TlsTransport) -> None:
        """Do the handshake with the transport, to the end on both sides."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.handshake)
            while True:
                try:
                    self.tls.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                else:
                    break
                self.flush()
                await trio.testing.wait_all_tasks_blocked()
                flight = self._below.take()
                self.handshake_octets += flight
                self._in.write(flight)
            self.flush()
        cipher = self.tls.cipher()
        assert cipher is not None
        assert "AES" in cipher[0]
        assert cipher[0].endswith("GCM") or cipher[0].endswith("SHA384")

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.flush()

    def flush(self) -> None:
        """Send the pending output of TLS."""
        if self._out.pending:
            self._below.feed(self._out.read())

    def receive(self, bytes_max: int | None = None) -> bytes:
        """Decrypt what has left the transport. Raises ``ssl.SSLError``."""
        self._in.write(self._below.take(bytes_max))
        data = b""
        while True:
            try:
                more = self.tls.read(65_536)
            except ssl.SSLWantReadError:
                return data
            if not more:
                return data
            data += more

    def by_hand(self) -> tuple[Direction, Direction]:
        """Return the keys of both directions from now on."""
        secrets = self._secrets()
        return Direction(secrets["CLIENT_TRAFFIC_SECRET_0"]), Direction(secrets["SERVER_TRAFFIC_SECRET_0"])

    def old_by_hand(self) -> OldDirection:
        """Return the client's key from now on, in TLS 1.2."""
        assert self._keys is not None
        line = next(line for line in self._keys.read_text().splitlines() if line.startswith("CLIENT_RANDOM"))
        client_random, master = (bytes.fromhex(word) for word in line.split()[1:])
        server_random = self.handshake_octets[
            11:43
        ]  # after the headers of the record and of ServerHello, and the version
        return OldDirection(master, client_random, server_random)

    def _secrets(self) -> dict[str, bytes]:
        assert self._keys is not None
        lines = (line.split() for line in self._keys.read_text().splitlines() if not line.startswith("#"))
        return {line[0]: bytes.fromhex(line[2]) for line in lines}


def _expanded(secret: bytes, label: str, size: int) -> bytes:
    """Return HKDF-Expand-Label, without a context."""
    full = b"tls13 " + label.encode()
    info = struct.pack("!HB", size, len(full)) + full + b"\0"
    return HKDFExpand(SHA384(), size, info).derive(secret)


def _prf(master: bytes, seed: bytes, size: int) -> bytes:
    """Return P_SHA384 of TLS 1.2."""
    data, chained = b"", seed
    while len(data) < size:
        chained = hmac.digest(master, chained, hashlib.sha384)
        data += hmac.digest(master, chained + seed, hashlib.sha384)
    return data[:size]
