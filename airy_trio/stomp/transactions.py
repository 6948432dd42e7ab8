"""The open transactions of a connection and the acknowledgements that wait in them; what these do is not known here."""

from airy_trio.stomp import faults
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.requests import Ack


class Transactions:
    """Transactions by the client's own names. All limits and faults raise ``RemoteProtocolError``.

    ``acks_max`` bounds the acknowledgements of all open transactions together.
    """

    __slots__ = (
        "_acks_held",
        "_acks_max",
        "_open",
        "_transactions_max",
    )

    def __init__(self, *, transactions_max: int, acks_max: int) -> None:
        self._transactions_max = transactions_max
        self._acks_max = acks_max
        self._open: dict[str, list[Ack]] = {}
        self._acks_held = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def acks_held(self) -> int:
        """How many acknowledgements wait in open transactions."""
        return self._acks_held

    def begin(self, name: str) -> None:
        """Open a transaction."""
        if name in self._open:
            raise RemoteProtocolError(*faults.TRANSACTION_BEGUN_TWICE)
        if len(self._open) == self._transactions_max:
            raise RemoteProtocolError(*faults.TOO_MANY_TRANSACTIONS)
        self._open[name] = []

    def add(self, name: str, ack: Ack) -> None:
        """Let an acknowledgement wait for the end of its transaction."""
        acks = self._acks_of(name)
        if self._acks_held == self._acks_max:
            raise RemoteProtocolError(*faults.TOO_MANY_TRANSACTION_ACKS)
        acks.append(ack)
        self._acks_held += 1

    def end(self, name: str) -> tuple[Ack, ...]:
        """Close a transaction and give what waited in it, in its order: COMMIT uses it, ABORT does not."""
        acks = tuple(self._acks_of(name))
        del self._open[name]
        self._acks_held -= len(acks)
        return acks

    def clear(self) -> None:
        """Drop all open transactions, as the end of the connection does (STOMP 1.2, "BEGIN")."""
        self._open.clear()
        self._acks_held = 0

    def _acks_of(self, name: str) -> list[Ack]:
        try:
            return self._open[name]
        except KeyError:
            raise RemoteProtocolError(*faults.UNKNOWN_TRANSACTION) from None
