"""The catalogue of faults: number, name and one sentence, no two equal."""

import re

import pytest

from airy_trio.stomp import errors
from airy_trio.stomp.codec import plain
from airy_trio.stomp.errors import Fault

ALL = {name: value for name, value in vars(errors).items() if isinstance(value, Fault)}
CATALOGUE_NUMBERS = {"400", "403", "413", "429"}


@pytest.mark.parametrize("name", ALL)
def test_token_is_a_catalogue_number_and_a_name(name: str) -> None:
    token = plain(ALL[name].token)
    assert re.fullmatch(r"[0-9]{3}(-[a-z]+)+", token)
    assert token[:3] in CATALOGUE_NUMBERS


@pytest.mark.parametrize("name", ALL)
def test_the_prose_is_one_sentence_of_plain_words(name: str) -> None:
    assert re.fullmatch(r"[A-Z][ -~]+\.", ALL[name].prose)


def test_no_two_are_alike() -> None:
    assert len(set(ALL.values())) == len(ALL)
