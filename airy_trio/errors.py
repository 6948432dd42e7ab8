"""The errors that a person or another layer is told about, and the exit code that each means to the command line.

::

    AiryTrioError
    ├── SettingsError          the command line or the settings file is wrong           exit 2
    ├── StartError             the server cannot start as things are                    exit 1
    │   └── MappingError       the mapping does not fit the tables that are there
    ├── Unavailable            something is away that comes back: wait and try again     exit 1 at start
    │   └── (database.DatabaseUnavailable, log.store.StoreUnavailable, …)
    └── (each layer's own, where it says so)

Every message is plain words for a reader of the terminal: no parameters of a statement, no password, no payload.
"""

from collections.abc import Iterable
from typing import Any, ClassVar


class AiryTrioError(Exception):
    """The root of the tree; ``exit_code`` is what the command line ends with when this reaches it."""

    exit_code: ClassVar[int] = 1


class FaultsError(AiryTrioError):
    """Several faults found in one look, told all at once: one line each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class SettingsError(FaultsError):
    """The command line or the settings file is wrong; nothing was started."""

    exit_code: ClassVar[int] = 2


class StartError(FaultsError):
    """The server cannot start as things are: database, triggers, store or port."""


class MappingError(StartError):
    """The mapping of the settings does not fit the tables of the database; each fault names its setting."""


class Unavailable(AiryTrioError):
    """A thing outside is away and may come back: the caller waits and tries again."""


def told_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """The one error that a person is told, where the group holds only errors of ours; else the group."""
    ours, others = group.split(AiryTrioError)
    if ours is None or others is not None:
        return group
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
