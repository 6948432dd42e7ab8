"""A position in the log: (epoch, offset), an ordered value with a text form.

Wire contract, "Positions and resuming".
"""

import re
import secrets
import string
from typing import Self

from attrs import frozen

EPOCH_LENGTH = 6
OFFSET_DIGITS_MAX = 18  # so that an offset fits into a signed 64-bit column
_ALPHABET = string.ascii_lowercase + string.digits
_PATTERN = re.compile(rf"([a-z0-9]{{{EPOCH_LENGTH}}})-(0|[1-9][0-9]{{0,{OFFSET_DIGITS_MAX - 1}}})")


class ForeignEpochError(ValueError):
    """Two positions of different epochs were compared. They have no order."""


def new_epoch() -> str:
    """Return a name for a new epoch: six random characters of [a-z0-9]."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(EPOCH_LENGTH))


@frozen(order=False)
class Position:
    """A place in the log: the event with this offset or, for a cursor, the place just after it.

    Offset 0 is before the first event. Positions of one epoch are ordered; comparing those of two epochs raises
    ``ForeignEpochError``, a ``ValueError``.
    """

    epoch: str
    offset: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse ``EPOCH-OFFSET``. Return None if the text is no position, because a client may send any text."""
        match = _PATTERN.fullmatch(text)
        return cls(match[1], int(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    def at(self, offset: int) -> "Position":
        """Return the position with another offset of the same epoch."""
        return Position(self.epoch, offset)

    def __lt__(self, other: "Position") -> bool:
        return self.offset < self._comparable(other).offset

    def __le__(self, other: "Position") -> bool:
        return self.offset <= self._comparable(other).offset

    def __gt__(self, other: "Position") -> bool:
        return self.offset > self._comparable(other).offset

    def __ge__(self, other: "Position") -> bool:
        return self.offset >= self._comparable(other).offset

    def _comparable(self, other: "Position") -> "Position":
        if self.epoch != other.epoch:
            message = f"{self} and {other} are of different epochs"
            raise ForeignEpochError(message)
        return other
