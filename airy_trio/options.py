"""Validators for the frozen options classes of all layers: the bounds of a setting, and the words that tell them.

They know numbers and texts, and refuse to know which settings there are, the file and the environment. Each looks
at its own value alone (``settings`` runs them one by one, without an instance, to tell all faults at once); what
concerns two options together belongs into ``__attrs_post_init__``. No message holds the value: it may be a secret.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from attrs import Attribute

Validator = Callable[[Any, "Attribute[Any]", Any], None]
"""What ``attrs.field(validator=...)`` takes. The instance is not looked at and may be None."""


class NotAllowedError(ValueError):
    """An option has an impossible value.

    ``allowed``: in plain words, what may stand there. ``found``: words for what does, free of secrets; None leaves
    it to the reader, who has the value and knows whether it may be shown.
    """

    def __init__(self, name: str, allowed: str, found: str | None = None) -> None:
        self.name = name
        self.allowed = allowed
        self.found = found
        super().__init__(f"{name}: found {found}, expected {allowed}" if found else f"{name}: expected {allowed}")


def at_least(least: float) -> Validator:
    """Make a validator: a finite number, ``least`` or more. Raises ``NotAllowedError``."""
    return _checked(lambda value: _finite(value) and value >= least, f"a number of at least {least}")


def more_than(bound: float) -> Validator:
    """Make a validator: a finite number above ``bound``, such as a time-out above 0. Raises ``NotAllowedError``."""
    return _checked(lambda value: _finite(value) and value > bound, f"a number above {bound}")


def between(least: float, most: float) -> Validator:
    """Make a validator: a number from ``least`` to ``most``, both included. Raises ``NotAllowedError``."""
    return _checked(lambda value: _finite(value) and least <= value <= most, f"a number from {least} to {most}")


def one_of(*choices: str) -> Validator:
    """Make a validator: one of these texts. Raises ``NotAllowedError``."""
    return _checked(lambda value: value in choices, " or ".join(f'"{choice}"' for choice in choices))


def matching(pattern: str, words: str) -> Validator:
    """Make a validator: a text that matches the regular expression as a whole, told in ``words`` instead.

    Raises ``NotAllowedError``.
    """
    compiled = re.compile(pattern)
    return _checked(lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None, words)


def satisfying(check: Callable[[Any], bool], words: str) -> Validator:
    """Make a validator of any predicate over the value alone, told in ``words``. Raises ``NotAllowedError``."""
    return _checked(check, words)


def _checked(check: Callable[[Any], bool], allowed: str) -> Validator:
    def validate(_instance: object, attribute: "Attribute[Any]", value: object) -> None:
        if not check(value):
            raise NotAllowedError(attribute.name, allowed)

    return validate


def _finite(value: object) -> bool:
    """Whether it is a number to compare with: a bool is not one, nor are infinity and NaN (both TOML)."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
