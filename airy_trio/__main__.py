"""``airy-trio``, also as ``python -m airy_trio``: handles signals before anything else is imported."""

import gc
import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import Final, NoReturn, cast

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED: Final = 128


def main() -> NoReturn:
    """Run the command line. SIGINT or SIGTERM before the command handles it itself ends the program without output.

    A server then exits with 0, as it does later; another command with 128 plus the signal's number. A server ignores
    SIGHUP until then, because it has not read the settings yet that SIGHUP would have it read again.
    """
    _open_closed_streams()
    # As stderr does: a text of the application may have characters that the encoding of a terminal lacks.
    cast("TextIOWrapper", sys.stdout).reconfigure(errors="backslashreplace")
    for number in SIGNALS:
        signal.signal(number, _end)
    if _serving():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from airy_trio.cli import main as run  # noqa: PLC0415 - takes a second or two, during which signals may arrive

    if _serving():
        from airy_trio.cli.logs import queue_stderr  # noqa: PLC0415 - only for servers

        queue_stderr()
    try:
        run()
    finally:
        gc.disable()  # a last collection would take a tenth of a second and be of no use
        # The program is ending, with an exit code and perhaps with log lines to write. A handler that raises SystemExit
        # would make Python print a traceback.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that is closed, which Python shows as None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - open until the program exits


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(0 if _serving() else _INTERRUPTED + number)


def _serving() -> bool:
    return len(sys.argv) > 1 and sys.argv[1].startswith("--config")


if __name__ == "__main__":
    main()
