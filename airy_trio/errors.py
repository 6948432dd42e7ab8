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

from collections.abc import Iterable, Iterator
from typing import Any


class AiryTrioError(Exception):
    """The root of the tree; ``exit_code`` is what the command line ends with when this reaches it."""

    exit_code: int = 1


class FaultsError(AiryTrioError):
    """Several faults found in one look, told all at once: one line each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class SettingsError(FaultsError):
    """The command line or the settings file is wrong; nothing was started."""

    exit_code = 2


class StartError(FaultsError):
    """The server cannot start as things are: database, triggers, store or port."""


class MappingError(StartError):
    """The mapping of the settings does not fit the tables of the database; each fault names its setting."""


class Unavailable(AiryTrioError):
    """A thing outside is away and may come back: the caller waits and tries again."""


class SeveralErrors(FaultsError):
    """Errors of several tasks that failed at the same time. It counts as the first of them."""

    def __init__(self, first: AiryTrioError, faults: Iterable[str]) -> None:
        super().__init__(faults)
        self.exit_code = first.exit_code


def told_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the one error to report if the group holds only errors of ours; else the group.

    If they have different lines it is ``SeveralErrors``, with each line once.
    """
    ours, others = group.split(AiryTrioError)
    if ours is None or others is not None:
        return group
    first, *more = _leaves(ours)
    faults = dict.fromkeys(line for error in (first, *more) for line in _lines(error))
    return SeveralErrors(first, faults) if len(faults) > len(_lines(first)) else first


def _leaves(error: BaseException) -> Iterator[AiryTrioError]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    elif isinstance(error, AiryTrioError):
        yield error


def _lines(error: AiryTrioError) -> tuple[str, ...]:
    return error.faults if isinstance(error, FaultsError) else (str(error),)
