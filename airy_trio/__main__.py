"""``airy-trio``, also as ``python -m airy_trio``: handle signals before the slow imports."""

import gc
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED: Final = 128


def main() -> NoReturn:
    """Run the command line. SIGINT or SIGTERM during the imports ends the program without a traceback.

    The exit code is then 0 for the server, as later, and 128 plus the signal's number for another command. The server
    ignores SIGHUP until it handles it, because it has not read its settings yet.
    """
    for number in SIGNALS:
        signal.signal(number, _end)
    if _serving():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from airy_trio.cli import main as run  # noqa: PLC0415 - takes a second or two, in which signals may arrive

    if _serving():
        from airy_trio.cli.logs import queue_stderr  # noqa: PLC0415 - the same

        queue_stderr()
    try:
        run()
    finally:
        gc.disable()  # saves the tenth of a second that a last collection takes


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(0 if _serving() else _INTERRUPTED + number)


def _serving() -> bool:
    return len(sys.argv) > 1 and sys.argv[1].startswith("--config")


if __name__ == "__main__":
    main()
