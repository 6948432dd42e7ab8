"""Waiting for Redis to answer, with its errors as the port of a store has them."""

import re
from collections.abc import Awaitable
from typing import Final, TypeVar

import trio
from coredis.exceptions import AuthenticationError, ClusterDownError, ReadOnlyError, RedisError, TryAgainError
from coredis.exceptions import ConnectionError as RedisConnectionError

from airy_trio.errors import AiryTrioError
from airy_trio.log.store import StoreUnavailable

T = TypeVar("T")

# coredis has exception classes for some error codes, and strips these from the message. Other codes are its first word.
_UNAVAILABLE: Final = (RedisConnectionError, OSError, ClusterDownError, ReadOnlyError, TryAgainError)
_UNAVAILABLE_CODES: Final = frozenset({
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN",
})  # fmt: skip
# Before version 7, Redis reports an error inside a script as ERR, with the actual code after the place in the script.
_CODE: Final = re.compile(r"(?:Error running script .*?(?:@user_script: ?\d+: )+-?)?([A-Z]+)\b")


class RedisRefusedError(AiryTrioError):
    """Redis answers, and what was asked is not possible as things are: a missing right, a version that is too old."""


async def asked(answer: Awaitable[T]) -> T:
    """Wait for an answer. Raises ``StoreUnavailable`` if waiting helps, else ``RedisRefusedError``."""
    try:
        return await answer
    except (AuthenticationError, RedisError, OSError) as error:  # TimeoutError is an OSError
        # A connection that was given up is told as one that failed.
        await trio.lowlevel.checkpoint_if_cancelled()  # noqa: ASYNC120 - the error is discarded on purpose
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        if _is_outage(error):
            raise StoreUnavailable(words) from None
        raise RedisRefusedError(words) from None


def _is_outage(error: Exception) -> bool:
    """Whether the same question may be answered later, without any change of settings or rights."""
    if isinstance(error, AuthenticationError):
        return False
    code = _CODE.match(str(error))
    return isinstance(error, _UNAVAILABLE) or (code is not None and code[1] in _UNAVAILABLE_CODES)
