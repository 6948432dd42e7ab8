"""What is said of a row that cannot become an event: which one, and which column is at fault.

A row's content never gets here: a fault names table, key and column, and is fit for a log as it is.
"""

from attrs import frozen

from airy_trio.changes.rows import Value

PRINTABLE_CHARACTERS_MAX = 80
_INTEGER_BITS_MAX = 128


class UnfitValueError(ValueError):
    """A raw value that its column may not hold. The text names the column and the problem, never the value."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"{column} {problem}")


@frozen(kw_only=True)
class RowFault:
    """A row that was passed over (wire contract, "Events").

    ``table`` is the object kind as the settings name it (``messages``, ``metadata``, ``channels``, ``tags``);
    ``key`` is printable and short; ``reason`` names the column.
    """

    table: str
    key: str
    reason: str


def printable(value: Value) -> str:
    """A key as a log may show it: one line, at most ``PRINTABLE_CHARACTERS_MAX`` characters."""
    match value:
        case None:
            shown = "NULL"
        case str():
            head = value[: PRINTABLE_CHARACTERS_MAX + 1]
            shown = head if head.isprintable() else ascii(head)
        case bytes():
            shown = repr(value[:PRINTABLE_CHARACTERS_MAX])
        case int() if value.bit_length() > _INTEGER_BITS_MAX:  # Python refuses to print very long ones
            shown = f"an integer of {value.bit_length()} bits"
        case _:
            shown = repr(value)
    return shown if len(shown) <= PRINTABLE_CHARACTERS_MAX else shown[: PRINTABLE_CHARACTERS_MAX - 1] + "…"
