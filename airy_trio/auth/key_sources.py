"""Where the keys of web tokens are: a PEM file, a JWK Set in a file, or one on a server; how long each may be old."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

import trio
from attrs import frozen

from airy_trio.websocket.auth.fetching import fetch
from airy_trio.websocket.auth.keys import KEYS_BYTES_MAX, Key, KeysFault, bounded, read_jwks, read_pem
from airy_trio.websocket.auth.options import AuthOptions


class KeySource(Protocol):
    """Gives keys whenever it is asked. ``pause_s``: not to be asked more often; ``refresh_s``: to be asked at least."""

    @property
    def pause_s(self) -> float: ...  # noqa: D102 - above

    @property
    def refresh_s(self) -> float: ...  # noqa: D102 - above

    async def load(self) -> tuple[Key, ...]:
        """Give the keys, at least one. Raises ``KeysFault``."""
        ...


@frozen
class KeyFile:
    """Keys in a file, which is looked at so often that a changed one counts soon."""

    path: Path
    read: Callable[[bytes, Collection[str]], tuple[Key, ...]]
    algorithms: tuple[str, ...]
    pause_s: float = 1.0
    refresh_s: float = 10.0

    @property
    def words(self) -> str:
        """What the setting is taken for; its value may be a secret that stands there by mistake."""
        kind = "JWK Set" if self.path.suffix == ".json" else "PEM file"
        return f"taken for the name of a {kind}, by jwt_algorithms and its ending"

    async def load(self) -> tuple[Key, ...]:
        """See ``KeySource.load``."""
        return await trio.to_thread.run_sync(self.load_now, abandon_on_cancel=True)  # a mount may hang

    def load_now(self) -> tuple[Key, ...]:
        """Do the same without Trio. Blocks."""
        try:
            with self.path.open("rb") as file:
                data = file.read(KEYS_BYTES_MAX + 1)
        except FileNotFoundError:
            message = "there is no such file"
        except (OSError, ValueError) as error:  # its text has the name, which may be a secret by mistake
            message = f"the file cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"
        else:
            return self.read(bounded(data), self.algorithms)
        raise KeysFault(message)


@frozen
class KeyServer:
    """A JWK Set behind an ``https://`` URL."""

    url: str
    algorithms: tuple[str, ...]
    pause_s: float = 30.0
    refresh_s: float = 300.0

    async def load(self) -> tuple[Key, ...]:
        """See ``KeySource.load``."""
        return read_jwks(await fetch(self.url), self.algorithms)


def source_of(options: AuthOptions) -> KeyFile | KeyServer:
    """Tell where the keys are: ``https://`` is a JWK Set's URL, ``*.json`` its file, anything else a PEM file."""
    algorithms = tuple(options.jwt_algorithms)
    if options.jwt_key.startswith("https://"):
        return KeyServer(options.jwt_key, algorithms)
    path = Path(options.jwt_key)
    return KeyFile(path, read_jwks if path.suffix == ".json" else read_pem, algorithms)
