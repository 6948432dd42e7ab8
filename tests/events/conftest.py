"""Short and printable names of test cases."""

import pytest

NAME_CHARACTERS_MAX = 40


def pytest_make_parametrize_id(config: pytest.Config, val: object) -> str | None:
    match val:
        case str() | bytes():
            return ascii(val[:NAME_CHARACTERS_MAX])[:NAME_CHARACTERS_MAX]
        case int() if val.bit_length() > 64:
            return f"{val.bit_length()}-bits"
        case _:
            return None
