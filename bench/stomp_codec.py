"""``make bench-stomp``: measure how fast frames are decoded and encoded, next to the codecs of two clients and a copy.

All contenders take turns in one run on the same octets. CPU time is counted, so other programs on the machine hardly
matter. The result is ``STOMP_CODEC.md``.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import stompman
from attrs import frozen
from stomp import utils as stomp_py
from stompman.serde import FrameParser, dump_frame

from airy_trio.stomp.codec import EOL, NUL, Decoder, encode, message_head, message_prefix
from airy_trio.stomp.connection import ConnectionOptions
from airy_trio.stomp.frames import Frame, Version
from bench.report import machine, table

OUTPUT: Final = Path(__file__).with_name("STOMP_CODEC.md")
ROUNDS: Final = 7
ROUND_S: Final = 0.1
SMALL_BYTES: Final = 348
LARGE_BYTES: Final = 50 * 1024
OURS, STOMPMAN, STOMP_PY, COPY = "airy-trio", "stompman", "stomp.py", "copy"
CONTENDERS: Final = (OURS, STOMPMAN, STOMP_PY, COPY)
LIMITS: Final = ConnectionOptions(server="bench").limits
ACK: Final = b"ACK\nid:7.k7f3q9-1042\n\n\0"
SUBSCRIBE: Final = b"SUBSCRIBE\nid:sub-0\ndestination:/events\nack:client\nprefetch-count:256\nreceipt:r-1\n\n\0"
PREFIX: Final = message_prefix(Version.V1_2, "/events", "sub-0")
HOW: Final = """\
Frames per second of CPU time, on cores shared with other work; in brackets how many times ours is as fast, the median
of the rounds. *copy* only copies the octets of the frame: what Python can do at most. stompman reads any stream, octet
by octet; stomp.py's `parse_frame` is given whole frames, and checks neither lengths nor limits. *write MESSAGE* joins
the parts that are made once for a subscription and an event, as the server does; the others write the whole frame.
"""


@frozen
class Case:
    """One kind of work: the function of each contender for one frame. Contenders without it are left out."""

    name: str
    work: Mapping[str, Callable[[], object]]


def message(size: int) -> bytes:
    """Return a MESSAGE with a body of this size."""
    return PREFIX + message_head("k7f3q9-1042", size, truncated=False) + EOL + b"x" * size + NUL


def reading(name: str, octets: bytes) -> Case:
    """Decode one frame, again and again with the same decoder."""
    decoder, parser = Decoder(LIMITS, Version.V1_2), FrameParser()
    work: dict[str, Callable[[], object]] = {
        OURS: lambda: list(decoder.feed(octets)),
        STOMPMAN: lambda: list(parser.parse_frames_from_chunk(octets)),
        STOMP_PY: lambda: stomp_py.parse_frame(octets[:-1]),
        COPY: lambda: bytearray(octets),
    }
    [ours], [theirs], other = list(decoder.feed(octets)), list(parser.parse_frames_from_chunk(octets)), work[STOMP_PY]()
    assert ours.command == other.cmd  # type: ignore[attr-defined]  # it has no types
    assert dict(ours.headers) == theirs.headers == other.headers  # type: ignore[attr-defined,union-attr]
    assert ours.body == other.body == getattr(theirs, "body", b"")  # type: ignore[attr-defined]
    return Case(f"read {name}", work)


def writing_receipt() -> Case:
    """Encode one RECEIPT."""
    frame = Frame("RECEIPT", (("receipt-id", "r-1"),))
    theirs = stompman.ReceiptFrame(headers={"receipt-id": "r-1"})
    other = stomp_py.Frame("RECEIPT", {"receipt-id": "r-1"}, None)
    octets = encode(frame, Version.V1_2)
    assert octets == dump_frame(theirs) == stomp_py.pack(stomp_py.convert_frame(other))
    return Case(
        "write RECEIPT",
        {
            OURS: lambda: encode(frame, Version.V1_2),
            STOMPMAN: lambda: dump_frame(theirs),
            STOMP_PY: lambda: stomp_py.pack(stomp_py.convert_frame(other)),
            COPY: lambda: bytearray(octets),
        },
    )


def writing_message(name: str, size: int) -> Case:
    """Assemble one MESSAGE."""
    body = b"x" * size
    headers = {
        "destination": "/events",
        "subscription": "sub-0",
        "message-id": "k7f3q9-1042",
        "content-type": "application/json",
        "content-length": str(size),
    }
    theirs = stompman.MessageFrame(headers=headers, body=body)  # type: ignore[arg-type]
    other = stomp_py.Frame("MESSAGE", dict(headers), body)
    octets = message(size)
    head = message_head("k7f3q9-1042", size, truncated=False)
    assert len(octets) == len(dump_frame(theirs)) == len(stomp_py.pack(stomp_py.convert_frame(other)))
    return Case(
        f"write {name}",
        {
            OURS: lambda: b"".join((PREFIX, head, EOL, body, NUL)),
            STOMPMAN: lambda: dump_frame(theirs),
            STOMP_PY: lambda: stomp_py.pack(stomp_py.convert_frame(other)),
            COPY: lambda: bytearray(octets),
        },
    )


def frames_per_s(work: Callable[[], object]) -> float:
    """Run the work for ``ROUND_S`` of CPU time."""
    done, batch, begun_at = 0, 1, time.process_time()
    while (spent := time.process_time() - begun_at) < ROUND_S:
        for _ in range(batch):
            work()
        done += batch
        batch = min(2 * batch, 1024)
    return done / spent


def measured(case: Case) -> tuple[str, ...]:
    """Return the row of a case: the medians of interleaved rounds."""
    rounds = [{name: frames_per_s(work) for name, work in case.work.items()} for _ in range(ROUNDS)]
    cells = [case.name]
    for name in CONTENDERS:
        rate = statistics.median(each[name] for each in rounds)
        ratio = statistics.median(each[OURS] / each[name] for each in rounds)
        cells.append(f"{rate:,.0f}" if name == OURS else f"{rate:,.0f} ({in_words(ratio)}×)")
    return tuple(cells)


def in_words(ratio: float) -> str:
    """Return a ratio with two digits."""
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"  # noqa: PLR2004 - beyond, .2g writes exponents


def main() -> None:
    """Measure, print and write."""
    load = os.getloadavg()[0]
    cases = (
        reading("ACK", ACK),
        reading("SUBSCRIBE", SUBSCRIBE),
        reading(f"MESSAGE of {SMALL_BYTES} octets", message(SMALL_BYTES)),
        reading("MESSAGE of 50 KiB", message(LARGE_BYTES)),
        writing_receipt(),
        writing_message(f"MESSAGE of {SMALL_BYTES} octets", SMALL_BYTES),
        writing_message("MESSAGE of 50 KiB", LARGE_BYTES),
    )
    rows = [measured(case) for case in cases]
    lines = ["# STOMP codec: results", "", f"`make bench-stomp`, {datetime.now(UTC):%Y-%m-%d}; {ROUNDS} rounds.", ""]
    lines += [*machine((load, os.getloadavg()[0])), "", *table(("frames/s", *CONTENDERS), rows), "", HOW]
    text = "\n".join(lines)
    print(text)
    OUTPUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
