"""Who a client is, and what it may read: credentials in, a user or a refusal out.

What a refused client is told, and when, is not here.
"""

from airy_trio.auth.authenticator import Authenticator, load_file_keys
from airy_trio.auth.keys import Key
from airy_trio.auth.users import ANYBODY, TOKEN_BYTES_MAX, AuthOptions, Refusal, RefusalKind, User

__all__ = [
    "ANYBODY",
    "TOKEN_BYTES_MAX",
    "AuthOptions",
    "Authenticator",
    "Key",
    "Refusal",
    "RefusalKind",
    "User",
    "load_file_keys",
]
