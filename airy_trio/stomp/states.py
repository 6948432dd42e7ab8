"""The states of a connection, by name; what leads from one to another is written in ``connection``."""

from enum import Enum, auto


class State(Enum):
    """What may still be read."""

    AWAITING_CONNECT = auto()
    OPEN = auto()
    DISCONNECTED = auto()
    FAILED = auto()
    CLOSED = auto()


class Greeting(Enum):
    """Whether CONNECTED may be, or was, written."""

    NOT_DUE = auto()
    DUE = auto()
    SAID = auto()
