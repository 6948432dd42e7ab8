"""The fast path for plain heads: which heads it reads, and which it leaves to the line-by-line decoder."""

import pytest

from airy_trio.stomp.codec import plain_head

HEAD = b"SEND\na:b:c\n\xc3\xa4: \n\n"


def test_plain_head_is_read_in_one_step() -> None:
    data = bytearray(b"\n\n" + HEAD + b"body\0")
    assert plain_head(data, 2, 100) == ("SEND", [("a", "b:c"), ("ä", " ")], 2 + len(HEAD))
    assert plain_head(bytearray(b"A\n\n"), 0, 100) == ("A", [], 3)


def test_head_at_the_limit_and_one_octet_beyond() -> None:
    assert plain_head(bytearray(HEAD), 0, len(HEAD)) is not None
    assert plain_head(bytearray(HEAD), 0, len(HEAD) - 1) is None


@pytest.mark.parametrize(
    "head",
    [
        b"SEND\na:b\n",
        b"SEND\r\na:b\n\n",
        b"SEND\na:\\c\n\n",
        b"SEND\n\0\n\n",
        b"SEND\n\xc3\n\n",
        b"SEND\nab\n\n",
        b"SEND\n:b\n\n",
    ],
)
def test_other_heads_are_left_to_the_decoder(head: bytes) -> None:
    assert plain_head(bytearray(head), 0, 100) is None
