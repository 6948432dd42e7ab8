"""The two kinds of protocol error, ours and the client's, and nothing about how either is reported.

::

    Exception
    ├── LocalProtocolError     we were asked to write what may not be written now: a bug, it must crash
    └── RemoteProtocolError    the client broke the protocol or a limit: it is told, then the connection ends
"""

from collections.abc import Iterable

from airy_trio.stomp.requests import Request


class LocalProtocolError(Exception):
    """The server tried to do what the protocol forbids in this state; never the client's doing."""


class RemoteProtocolError(Exception):
    """The client's fault, with all that its ERROR frame says.

    ``token`` is the ERROR's ``message`` header: an HTTP-like number and a name, such as ``400-malformed-frame``.
    ``prose`` is its body: plain words that repeat nothing of what the client sent.
    ``receipt_id`` is the bad frame's ``receipt``, where it has one that could be read before the fault.
    ``headers`` are further headers of the ERROR frame (``version``, where no version is common).
    ``fulfilled`` are the requests that the same data held before the fault: they took effect, in this order.
    """

    def __init__(
        self,
        token: str,
        prose: str,
        *,
        receipt_id: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(f"{token}: {prose}")
        self.token = token
        self.prose = prose
        self.receipt_id = receipt_id
        self.headers: tuple[tuple[str, str], ...] = tuple(headers)
        self.fulfilled: list[Request] = []
