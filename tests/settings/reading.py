"""Parse settings, and return their faults, for tests."""

from collections.abc import Mapping

import pytest

from airy_trio.errors import SettingsError
from airy_trio.settings import Settings, parse

URL = "sqlite:///application.db"
DATABASE = f'[database]\nurl = "{URL}"\n'


def read(text: str, environ: Mapping[str, str] | None = None) -> Settings:
    """Return settings from a text that lacks only the database."""
    return parse(DATABASE + text, environ or {})


def faults(text: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the faults of a complete text."""
    with pytest.raises(SettingsError) as caught:
        parse(text, environ or {})
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "a chained error would show secrets"
    assert all(fault.isprintable() for fault in caught.value.faults), "one line each"
    return caught.value.faults


def fault(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the only fault of a text that lacks only the database."""
    (only,) = faults(DATABASE + text, environ)
    return only
