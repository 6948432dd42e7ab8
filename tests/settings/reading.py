"""How the tests of the settings ask for faults."""

from collections.abc import Mapping

import pytest

from airy_trio.errors import SettingsError
from airy_trio.settings import Settings, parse

URL = "sqlite:///application.db"
DATABASE = f'[database]\nurl = "{URL}"\n'


def read(text: str, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from a text that lacks only the database."""
    return parse(DATABASE + text, environ or {})


def faults(text: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The faults of a text that stands alone."""
    with pytest.raises(SettingsError) as caught:
        parse(text, environ or {})
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "the chain would show what the message does not"
    assert all(fault.isprintable() for fault in caught.value.faults), "one line each"
    return caught.value.faults


def fault(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The one fault of a text that lacks only the database."""
    (only,) = faults(DATABASE + text, environ)
    return only
