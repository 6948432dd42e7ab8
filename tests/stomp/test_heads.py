"""Heads read in one go: what is read, within which limits, and all that is left to the reading line by line."""

import pytest

from airy_trio.stomp.decoder import plain_head

HEAD = b"SEND\na:b:c\n\xc3\xa4: \n\n"


def test_a_plain_head_is_read_in_one_go_from_where_it_begins_to_what_follows() -> None:
    data = bytearray(b"\n\n" + HEAD + b"body\0")
    assert plain_head(data, 2, 100) == ("SEND", [("a", "b:c"), ("ä", " ")], 2 + len(HEAD))
    assert plain_head(bytearray(b"A\n\n"), 0, 100) == ("A", [], 3)


def test_a_head_is_read_up_to_the_limit_and_not_one_octet_beyond() -> None:
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
def test_what_is_not_plain_is_left_to_who_reads_line_by_line(head: bytes) -> None:
    assert plain_head(bytearray(head), 0, 100) is None
