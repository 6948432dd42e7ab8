"""Authentication: credentials in, a user with a grant or a refusal out."""

from airy_trio.auth.authenticator import Authenticator, UnknownKeyError, load_file_keys
from airy_trio.auth.keys import Key
from airy_trio.auth.users import ANONYMOUS, TOKEN_BYTES_MAX, AuthOptions, Refusal, RefusalKind, User

__all__ = [
    "ANONYMOUS",
    "TOKEN_BYTES_MAX",
    "AuthOptions",
    "Authenticator",
    "Key",
    "Refusal",
    "RefusalKind",
    "UnknownKeyError",
    "User",
    "load_file_keys",
]
