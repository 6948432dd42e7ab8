"""The errors that reach the operator or another package, with the exit code of the command line.

::

    AiryTrioError
    ├── FaultsError            several faults at once
    │   ├── SettingsError      the command line or the settings file is wrong            exit 2
    │   ├── StartError         the server cannot start                                   exit 1
    │   │   └── MappingError   the mapping does not fit the tables of the database
    │   └── SeveralErrors      several tasks failed                                      as the first of them
    ├── Unavailable            a database or store is unavailable: retry                 exit 1 at start
    │   └── (database.DatabaseUnavailable, log.store.StoreUnavailable, …)
    └── (errors of single packages)

Messages are written for the terminal. They show no parameters of statements, no passwords and no payloads.
"""

from collections.abc import Iterable, Iterator
from typing import Any


class AiryTrioError(Exception):
    """The root of the tree. ``exit_code``: the exit code of a command that this error ends."""

    exit_code: int = 1


class FaultsError(AiryTrioError):
    """Several faults that are reported at once, one line each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class SettingsError(FaultsError):
    """The command line or the settings file is wrong; nothing was started."""

    exit_code = 2


class StartError(FaultsError):
    """The server cannot start, because of its database, triggers, event store or port."""


class MappingError(StartError):
    """The mapping in the settings does not fit the tables of the database. Each fault names its setting."""


class Unavailable(AiryTrioError):
    """An external system is unavailable and may recover: the caller waits and retries."""


class SeveralErrors(FaultsError):
    """The errors of several tasks that failed at the same time, with the exit code of the first."""

    def __init__(self, first: AiryTrioError, faults: Iterable[str]) -> None:
        super().__init__(faults)
        self.exit_code = first.exit_code


def single_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return one error to report if the group has only ``AiryTrioError``, otherwise the group.

    It is the first error if all have the same lines, otherwise ``SeveralErrors`` with each line once.
    """
    ours, others = group.split(AiryTrioError)
    if ours is None or others is not None:
        return group
    first, *more = _leaves(ours)
    faults = dict.fromkeys(line for error in (first, *more) for line in lines_of(error))
    return SeveralErrors(first, faults) if len(faults) > len(lines_of(first)) else first


def _leaves(error: BaseException) -> Iterator[AiryTrioError]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    elif isinstance(error, AiryTrioError):
        yield error


def lines_of(error: AiryTrioError) -> tuple[str, ...]:
    """Return the lines of an error: one for each fault."""
    return error.faults if isinstance(error, FaultsError) else (str(error),)


def listed(names: Iterable[str], most: int, separator: str = ", ") -> str:
    """Join at most ``most`` names for a message, with the number of the others at the end."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return separator.join(every[:most]) + more
