"""Waiting for Redis to answer, with its errors as the port of a store has them."""

from collections.abc import Awaitable
from typing import Final, TypeVar

import trio
from coredis.exceptions import AuthenticationError, RedisError
from coredis.exceptions import ConnectionError as RedisConnectionError

from airy_trio.errors import AiryTrioError
from airy_trio.log.store import StoreUnavailable

T = TypeVar("T")

_WAITING_HEALS: Final = (
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "READONLY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
)


class RedisRefusedError(AiryTrioError):
    """Redis answers, and what was asked is not possible as things are: a missing right, a version that is too old."""


async def asked(answer: Awaitable[T]) -> T:
    """Wait for an answer. Raises ``StoreUnavailable`` where waiting heals, else ``RedisRefusedError``."""
    try:
        return await answer
    except (AuthenticationError, RedisError, OSError) as error:  # TimeoutError is an OSError
        # A connection that was given up is told as one that failed.
        await trio.lowlevel.checkpoint_if_cancelled()  # noqa: ASYNC120 - the error is discarded on purpose
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        away = isinstance(error, (RedisConnectionError, OSError)) and not isinstance(error, AuthenticationError)
        if away or any(code in words for code in _WAITING_HEALS):
            raise StoreUnavailable(words) from None
        raise RedisRefusedError(words) from None
