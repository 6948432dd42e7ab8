"""What in ``[auth]`` does not go together. No line has a part of a secret; no file is opened here."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from attrs import fields

from airy_trio.websocket import origins
from airy_trio.websocket.auth.fetching import Place
from airy_trio.websocket.auth.keys import SECRET_BYTES_MIN
from airy_trio.websocket.auth.options import SECRET_ALGORITHMS, AuthOptions
from airy_trio.websocket.listener import ListenerOptions

_DEFAULTS: Final = AuthOptions()
_OF_WEB_TOKENS: Final = tuple(option.name for option in fields(AuthOptions) if option.name.startswith("jwt_"))


def contradictions(options: AuthOptions) -> Iterator[str]:
    """Options that leave nobody in, let everybody in by mistake, or do nothing: each as a line without its section."""
    mode = options.mode
    if mode == "tokens" and not options.tokens:
        yield 'mode is "tokens", but there are none: nobody could connect'
    if mode == "none" and options.tokens:
        yield 'there are tokens, but mode is "none": everybody could connect'
    if mode == "jwt" and options.tokens:
        yield 'there are tokens, but mode is "jwt": none of them would be looked at'
    if mode == "none" and options.cookie:
        yield 'cookie says where a token is, but mode is "none": everybody could connect'
    if mode == "jwt":
        yield from _of_web_tokens(options)
        return
    idle = [name for name in _OF_WEB_TOKENS if getattr(options, name) != getattr(_DEFAULTS, name)]
    if idle:
        yield f'{", ".join(idle)}: of mode = "jwt", but mode is "{mode}"'


def between(auth: AuthOptions, listener: ListenerOptions) -> Iterator[str]:
    """What of two sections does not go together, each as a line with both names."""
    if auth.cookie and origins.ANY in listener.allowed_origins:
        yield (
            'auth.cookie, listener.allowed_origins: browsers send cookies along from every page, and "*" lets every '
            "page in: any page that a user visits could read what that user may"
        )


def _of_web_tokens(options: AuthOptions) -> Iterator[str]:
    channels, destinations = options.grant_claims
    if channels == destinations:
        yield f'jwt_channels_claim and jwt_destinations_claim are both "{channels}": neither could be granted alone'
    shared = [name for name in options.jwt_algorithms if name in SECRET_ALGORITHMS]
    if shared and len(shared) < len(options.jwt_algorithms):
        yield (
            "jwt_algorithms: HS* with others: one key cannot be both a secret and public, and whoever has a public key "
            "could sign with it"
        )
    elif not options.jwt_key:
        what = "the secret" if shared else "a file or an https:// URL of public keys"
        yield f'mode is "jwt", which needs jwt_key: {what}'
    elif shared:
        yield from _of_secret(options.jwt_key, max(SECRET_BYTES_MIN[name] for name in shared), shared)
    else:
        yield from _of_place(options.jwt_key)


def _of_secret(secret: str, bytes_min: int, names: list[str]) -> Iterator[str]:
    if secret.startswith(("https://", "http://")) or "-----BEGIN" in secret:
        yield "jwt_key: with HS* it is the secret itself, but this is a URL or a key in PEM"
    elif len(secret.encode()) < bytes_min:
        yield f"jwt_key: the secret of {', '.join(names)} needs at least {bytes_min} bytes (RFC 7518, section 3.2)"


def _of_place(place: str) -> Iterator[str]:
    if "-----BEGIN" in place:
        yield "jwt_key: this is a key itself; it belongs in a file, whose name stands here"
    elif place.startswith("http://"):
        yield "jwt_key: keys are fetched over https:// only: over http:// anybody on the way could put in their own"
    elif place.startswith("https://"):
        yield from _of_url(place)
    elif "\0" in place:
        yield "jwt_key: this is no file name"


def _of_url(text: str) -> Iterator[str]:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
        Place.of(text)
    except ValueError:  # UnicodeError too: a name that IDNA does not know
        host, port = None, None
    if not host or port == 0 or not text.isprintable() or " " in text:
        yield "jwt_key: an https:// URL that cannot be read"
    elif "@" in text:
        yield "jwt_key: a URL with a user or a password, which a server of public keys does not need"
