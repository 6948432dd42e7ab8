"""The two kinds of protocol error, ours and the client's, and nothing about how either is reported.

::

    Exception
    ├── LocalProtocolError     we were asked to write what may not be written now: a bug, it must crash
    └── RemoteProtocolError    the client broke the protocol or a limit: it is told, then the connection ends

The catalogue of what a client can do wrong in STOMP itself; what is wrong above it is told elsewhere.

Each has the token and the prose of its ERROR frame. The prose repeats nothing of what the client sent.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from airy_trio.stomp.requests import Request


class Fault(NamedTuple):
    """The arguments of a ``RemoteProtocolError``: its ``token`` and ``prose``."""

    token: str
    prose: str


# the grammar
NOT_A_HEADER = Fault("400-malformed-frame", "A header line is not of the form NAME:VALUE.")
NOT_A_LENGTH = Fault("400-malformed-frame", "The content-length is not a number of octets.")
NO_BLANK_LINE = Fault("400-malformed-frame", "The frame ends before the blank line that ends its head.")
NO_NUL = Fault("400-malformed-frame", "No NUL follows the number of octets that content-length tells.")
BARE_CR = Fault("400-malformed-frame", "A line of the frame's head holds a carriage return.")
NOT_UTF_8 = Fault("400-malformed-frame", "A line of the frame's head is not UTF-8.")
UNDEFINED_ESCAPE = Fault(
    "400-malformed-frame", "A header holds an escape sequence that this version of STOMP does not define."
)

# the limits of a frame
COMMAND_TOO_LARGE = Fault("413-command-too-large", "The command is longer than is allowed.")
TOO_MANY_HEADERS = Fault("413-too-many-headers", "The frame has more headers than are allowed.")
HEADER_TOO_LARGE = Fault("413-header-too-large", "A header line is longer than is allowed.")
FRAME_TOO_LARGE = Fault("413-frame-too-large", "The frame is larger than is allowed.")
ID_TOO_LARGE = Fault("413-id-too-large", "The id of a subscription or the name of a transaction is too long.")
DESTINATION_TOO_LARGE = Fault("413-destination-too-large", "The destination is longer than is allowed.")

# frames that may not come
NOT_CONNECTED = Fault("400-not-connected", "The first frame must be CONNECT or STOMP.")
ALREADY_CONNECTED = Fault("400-already-connected", "This connection is open already; it can be opened only once.")
UNKNOWN_COMMAND = Fault("400-unknown-command", "The command is none that a client of this server may use.")
SEND_NOT_ALLOWED = Fault("403-send-not-allowed", "Clients cannot send messages to this server.")

# headers that are missing or wrong
NO_COMMON_VERSION = Fault("400-no-common-version", "This server speaks versions 1.0, 1.1 and 1.2 of STOMP.")
BAD_HEART_BEAT = Fault("400-bad-heart-beat", "The heart-beat header is not two numbers of milliseconds.")
NO_DESTINATION = Fault("400-missing-header", "The frame needs the header destination.")
NO_ID = Fault("400-missing-header", "The frame needs the header id.")
NO_TRANSACTION = Fault("400-missing-header", "The frame needs the header transaction.")
NO_MESSAGE_ID = Fault("400-missing-header", "The frame needs the header id or message-id.")
BAD_ACK_MODE = Fault("400-bad-ack-mode", "The ack header is none of auto, client and client-individual.")
BAD_PREFETCH_COUNT = Fault("400-bad-prefetch-count", "The prefetch-count header is not a number that is allowed.")
TOO_MUCH_PREFETCH = Fault(
    "400-too-much-prefetch", "The prefetch-counts of the open subscriptions add up to more than is allowed."
)
BAD_REPLAY = Fault("400-bad-replay", "The replay header is neither none nor all.")

# what stands on the connection
DUPLICATE_SUBSCRIPTION = Fault("400-duplicate-subscription", "A subscription with this id is already open.")
TOO_MANY_SUBSCRIPTIONS = Fault("429-too-many-subscriptions", "More subscriptions are open than are allowed.")
TRANSACTION_BEGUN_TWICE = Fault("400-transaction-begun-twice", "A transaction of this name is already open.")
UNKNOWN_TRANSACTION = Fault("400-unknown-transaction", "No transaction of this name is open.")
TOO_MANY_TRANSACTIONS = Fault("400-too-many-transactions", "More transactions are open than are allowed.")
TOO_MANY_TRANSACTION_ACKS = Fault(
    "400-too-many-transaction-acks", "More acknowledgements wait in transactions than are allowed."
)

TOKENS: Final = frozenset(fault.token for fault in tuple(globals().values()) if isinstance(fault, Fault))
"""Of all the faults above."""


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
