"""``airy-trio``, also as ``python -m airy_trio``: what answers a signal before anything else has been imported."""

import gc
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED: Final = 128


def main() -> NoReturn:
    """Run the command line. A signal that comes before the server listens for it ends the program without a word.

    But SIGHUP, which a server takes for a wish to read its settings again: they have not been read yet.

    The server then ends with 0, as later; a command that did not finish ends with 128 and the signal's number.
    """
    for number in SIGNALS:
        signal.signal(number, _end)
    if _serving():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from airy_trio.cli import main as run  # noqa: PLC0415 - takes a second or two, in which signals come

    if _serving():
        from airy_trio.cli.logs import queue_stderr  # noqa: PLC0415 - the same

        queue_stderr()
    try:
        run()
    finally:
        gc.disable()  # else the interpreter looks for garbage before it ends: a tenth of a second, for nothing


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(0 if _serving() else _INTERRUPTED + number)


def _serving() -> bool:
    return len(sys.argv) > 1 and sys.argv[1].startswith("--config")


if __name__ == "__main__":
    main()
