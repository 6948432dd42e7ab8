"""The catalogue of faults: number, name and one sentence, no two equal."""

import re

from airy_trio.stomp import errors
from airy_trio.stomp.codec import plain
from airy_trio.stomp.errors import Fault

ALL = {name: value for name, value in vars(errors).items() if isinstance(value, Fault)}
CATALOGUE_NUMBERS = {"400", "403", "413", "429"}


def test_tokens_are_a_catalogue_number_and_a_name() -> None:
    tokens = [plain(one.token) for one in ALL.values()]
    assert [token for token in tokens if not re.fullmatch(r"[0-9]{3}(-[a-z]+)+", token)] == []
    assert {token[:3] for token in tokens} <= CATALOGUE_NUMBERS


def test_the_prose_is_one_sentence_of_plain_words() -> None:
    assert [one.prose for one in ALL.values() if not re.fullmatch(r"[A-Z][ -~]+\.", one.prose)] == []


def test_no_two_are_alike() -> None:
    assert len(set(ALL.values())) == len(ALL)
