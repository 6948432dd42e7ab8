"""The versions of STOMP, and one frame as a value."""

from enum import Enum

from attrs import frozen

UNESCAPED_COMMANDS = frozenset({"CONNECT", "STOMP", "CONNECTED"})
"""Their headers are never escaped, so that a peer of STOMP 1.0 can read them (STOMP 1.2, "Value Encoding")."""


class Version(Enum):
    """A version of STOMP; in ascending order."""

    V1_0 = "1.0"
    V1_1 = "1.1"
    V1_2 = "1.2"


@frozen
class Frame:
    """One frame. ``headers`` are unescaped, in the order in which they were sent, repeated ones included."""

    command: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def get(self, name: str) -> str | None:
        """Return the value of a header: the first one if it is repeated (STOMP 1.2, "Repeated Header Entries")."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def receipt(self) -> str | None:
        """The receipt id that the client asks for. CONNECT and STOMP cannot have one (STOMP 1.2, "Header receipt")."""
        return None if self.command in UNESCAPED_COMMANDS else self.get("receipt")
