"""The two kinds of protocol error, and the catalogue of the faults of a client in STOMP itself.

::

    Exception
    ├── LocalProtocolError     the server tried to write a frame that may not be written now: a bug, it must crash
    └── RemoteProtocolError    the client broke the protocol or a limit: it receives ERROR, then the connection ends

Faults above STOMP, such as an unknown destination, are in ``delivery.disconnects``.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from airy_trio.stomp.frames import Request


class Fault(NamedTuple):
    """The ``token`` and ``prose`` of a ``RemoteProtocolError``. The prose repeats nothing that the client sent."""

    token: str
    prose: str


# the grammar
NOT_A_HEADER = Fault("400-malformed-frame", "A header line is not of the form NAME:VALUE.")
NOT_A_LENGTH = Fault("400-malformed-frame", "The content-length is not a number of octets.")
NO_BLANK_LINE = Fault("400-malformed-frame", "The frame ends before the blank line that ends its head.")
NO_NUL = Fault("400-malformed-frame", "The content-length is not followed by a NUL at the end of the body.")
BARE_CR = Fault("400-malformed-frame", "A line of the frame's head contains a carriage return.")
NOT_UTF_8 = Fault("400-malformed-frame", "A line of the frame's head is not UTF-8.")
UNDEFINED_ESCAPE = Fault(
    "400-malformed-frame", "A header contains an escape sequence that this version of STOMP does not define."
)

# the limits of a frame
COMMAND_TOO_LARGE = Fault("413-command-too-large", "The command is longer than allowed.")
TOO_MANY_HEADERS = Fault("413-too-many-headers", "The frame has more headers than allowed.")
HEADER_TOO_LARGE = Fault("413-header-too-large", "A header line is longer than allowed.")
FRAME_TOO_LARGE = Fault("413-frame-too-large", "The frame is larger than allowed.")
ID_TOO_LARGE = Fault("413-id-too-large", "The id of a subscription or the name of a transaction is too long.")
DESTINATION_TOO_LARGE = Fault("413-destination-too-large", "The destination is longer than allowed.")

# frames that may not arrive now
NOT_CONNECTED = Fault("400-not-connected", "The first frame must be CONNECT or STOMP.")
ALREADY_CONNECTED = Fault("400-already-connected", "This connection is already open; CONNECT may be sent only once.")
UNKNOWN_COMMAND = Fault("400-unknown-command", "The command is not one that a client of this server may use.")
SEND_NOT_ALLOWED = Fault("403-send-not-allowed", "Clients cannot send messages to this server.")

# headers that are missing or wrong
NO_COMMON_VERSION = Fault("400-no-common-version", "This server speaks versions 1.0, 1.1 and 1.2 of STOMP.")
BAD_HEART_BEAT = Fault("400-bad-heart-beat", "The heart-beat header is not two numbers of milliseconds.")
NO_DESTINATION = Fault("400-missing-header", "The frame needs the header destination.")
NO_ID = Fault("400-missing-header", "The frame needs the header id.")
NO_TRANSACTION = Fault("400-missing-header", "The frame needs the header transaction.")
NO_MESSAGE_ID = Fault("400-missing-header", "The frame needs the header id or message-id.")
BAD_ACK_MODE = Fault("400-bad-ack-mode", "The ack header is not auto, client or client-individual.")
BAD_PREFETCH_COUNT = Fault("400-bad-prefetch-count", "The prefetch-count header is not a number in the allowed range.")
TOO_MUCH_PREFETCH = Fault(
    "400-too-much-prefetch", "The prefetch-counts of the open subscriptions add up to more than allowed."
)
BAD_REPLAY = Fault("400-bad-replay", "The replay header is none of current, recent, all and none.")

# the state of the connection
DUPLICATE_SUBSCRIPTION = Fault("400-duplicate-subscription", "A subscription with this id is already open.")
TOO_MANY_SUBSCRIPTIONS = Fault("429-too-many-subscriptions", "More subscriptions are open than allowed.")
TRANSACTION_BEGUN_TWICE = Fault("400-transaction-begun-twice", "A transaction with this name is already open.")
UNKNOWN_TRANSACTION = Fault("400-unknown-transaction", "No transaction with this name is open.")
TOO_MANY_TRANSACTIONS = Fault("400-too-many-transactions", "More transactions are open than allowed.")
TOO_MANY_TRANSACTION_ACKS = Fault(
    "400-too-many-transaction-acks", "More acknowledgements wait in transactions than allowed."
)

TOKENS: Final = frozenset(fault.token for fault in tuple(globals().values()) if isinstance(fault, Fault))
"""The tokens of all faults above."""


class LocalProtocolError(Exception):
    """The server tried to write a frame that the protocol does not allow now. Never caused by a client."""


class RemoteProtocolError(Exception):
    """A fault of the client, with the content of its ERROR frame.

    ``token`` is the ERROR's ``message`` header: an HTTP-like number and a name, such as ``400-malformed-frame``.
    ``prose`` is its body.
    ``receipt_id`` is the ``receipt`` of the bad frame, if it has one that could be read before the fault.
    ``headers`` are further headers of the ERROR frame: ``version``, if there is no common version.
    ``fulfilled`` are the requests before the fault in the same input. They took effect, in this order.
    """

    def __init__(
        self, token: str, prose: str, *, receipt_id: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(f"{token}: {prose}")
        self.token = token
        self.prose = prose
        self.receipt_id = receipt_id
        self.headers: tuple[tuple[str, str], ...] = tuple(headers)
        self.fulfilled: list[Request] = []
