"""The event that every measured server sends: a message as in production, 348 octets, with what the client checks."""

import time
from typing import Final

BODY_BYTES: Final = 348
_HEAD: Final = (
    '{"type":"message.updated","payload":{"conversation_id":"c%d","channel_id":"ch1",'
    '"message":{"id":"m%d","content":{"t":%d,"n":%d,"text":"'
)
_REST: Final = (
    '"},"delivery_state":"pending","from_contact":true,"sent_at":"2020-10-25T21:24:54.560Z",'
    '"source":"facebook","sender":{"id":"github:12345"}}}}'
)


def body(number: int, conversations: int = 1) -> str:
    """Make event ``number``, counted from 1. The events go to ``conversations`` conversations in turn.

    ``n`` in the body counts the events of a conversation; ``t`` is now, in nanoseconds of ``time.monotonic_ns``.
    """
    count, conversation = divmod(number - 1, conversations)
    head = _HEAD % (conversation, number, time.monotonic_ns(), count + 1)
    return head + "x" * (BODY_BYTES - len(head) - len(_REST)) + _REST
