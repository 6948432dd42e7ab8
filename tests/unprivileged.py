"""Run a program that is subject to file modes, even if the tests run as root.

    python unprivileged.py PROGRAM ARGUMENT…

Two capabilities let root ignore file modes. Without them root has only the rights of any user, and of the owner of its
files.
"""

import ctypes
import os
import sys

PR_CAPBSET_DROP = 24
CAPABILITIES = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def main(program: list[str]) -> None:
    """Replace this process by the program."""
    if os.geteuid() == 0:
        library = ctypes.CDLL(None, use_errno=True)
        for capability in CAPABILITIES:
            if library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")
    os.execv(program[0], program)  # noqa: S606 - no shell is needed


if __name__ == "__main__":
    main(sys.argv[1:])
