"""The arithmetic of heart-beats (STOMP 1.2, "Heart-beating"): intervals out of headers; clocks are the caller's."""

import re
from typing import Self

from attrs import frozen

SILENT_AFTER_INTERVALS = 2.5
"""Browsers throttle the timers of hidden tabs to one a minute: an interval of 30 s tolerates that."""

_HEADER = re.compile(r" *([0-9]{1,18}) *, *([0-9]{1,18}) *")


@frozen(kw_only=True)
class HeartBeat:
    """What was agreed, in seconds. None: no heart-beats in this direction.

    ``outgoing_s``: how long we may write nothing. ``incoming_s``: how often the client has promised to write.
    """

    outgoing_s: float | None
    incoming_s: float | None

    @classmethod
    def none(cls) -> Self:
        """Make the agreement of STOMP 1.0, and of who sends no header: none in either direction."""
        return cls(outgoing_s=None, incoming_s=None)

    @property
    def silent_after_s(self) -> float | None:
        """How long the client may write nothing before it counts as gone; None: for ever."""
        return None if self.incoming_s is None else SILENT_AFTER_INTERVALS * self.incoming_s


def negotiate(client_header: str | None, server_ms: int) -> HeartBeat:
    """Agree on intervals: of each direction the longer of both sides, or none where either says 0.

    ``client_header`` is the ``heart-beat`` of CONNECT, "what it can send, what it wants", in milliseconds; None
    counts as ``0,0``. ``server_ms`` is what we offer for both. Raises ``ValueError`` where the header is not two
    numbers.
    """
    if client_header is None:
        return HeartBeat.none()
    numbers = _HEADER.fullmatch(client_header)
    if numbers is None:
        message = "not two numbers of milliseconds"
        raise ValueError(message)
    can_send_ms, wants_ms = int(numbers[1]), int(numbers[2])
    return HeartBeat(outgoing_s=_interval_s(server_ms, wants_ms), incoming_s=_interval_s(can_send_ms, server_ms))


def _interval_s(sender_ms: int, receiver_ms: int) -> float | None:
    return max(sender_ms, receiver_ms) / 1000 if sender_ms and receiver_ms else None
