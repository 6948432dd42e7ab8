"""``${NAME}`` and ``${NAME:-default}`` in a text, taken from the environment. It knows no setting."""

import re
from collections.abc import Mapping
from typing import Final

_REFERENCE: Final = re.compile(
    r"\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<rest>:-(?P<default>(?:(?!\$\{)[^}])*))?\})?"
)
"""The name is absent where ``${`` begins nothing that can be read."""


class EnvironmentFault(ValueError):
    """A reference that cannot be followed; the message names the variable and never holds a value."""


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """Replace every reference. The default also serves where the variable is empty, as in a shell.

    What comes from the environment is taken as it is: a ``${`` in it is text. Raises ``EnvironmentFault``.
    """
    references = list(_REFERENCE.finditer(text))
    if any(reference["name"] is None for reference in references):
        message = 'found "${" that begins neither ${NAME} nor ${NAME:-default}'
        raise EnvironmentFault(message)
    unset = dict.fromkeys(each["name"] for each in references if each["rest"] is None and each["name"] not in environ)
    if unset:
        message = f"not set in the environment: {', '.join(unset)}"
        raise EnvironmentFault(message)
    result = _REFERENCE.sub(lambda reference: _value(reference, environ), text)
    if not _is_unicode(result):
        names = ", ".join(dict.fromkeys(each["name"] for each in references))
        message = f"not UTF-8 in the environment: {names}"
        raise EnvironmentFault(message)
    return result


def _value(reference: re.Match[str], environ: Mapping[str, str]) -> str:
    value = environ.get(reference["name"], "")
    return value or reference["default"] or ""


def _is_unicode(text: str) -> bool:
    """Whether no byte of the environment was smuggled in as a lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
