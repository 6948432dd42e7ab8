"""The head of a frame that has come whole and holds nothing unusual, read in one go; everything else is not for here.

Nearly every frame of a client is like that, and to go line by line costs several times as much. What is refused here
is not told to be wrong: the decoder reads it line by line, and finds out.
"""

_UNUSUAL = (b"\r", b"\0", b"\\")
"""Line ends of two octets, an end before the blank line, escapes."""
_BLANK_LINE = b"\n\n"


def plain_head(data: bytearray, at: int, bytes_max: int) -> tuple[str, list[tuple[str, str]], int] | None:
    """Read a head that begins at ``at``: the command, the headers, and where what follows the blank line begins.

    None where it has not ended, is longer than ``bytes_max`` with its blank line, or is not plain.
    """
    end = data.find(_BLANK_LINE, at, at + bytes_max)
    if end < 0:
        return None
    head = bytes(data[at:end])
    if any(octet in head for octet in _UNUSUAL):
        return None
    try:
        command, *lines = head.decode().split("\n")
    except UnicodeDecodeError:
        return None
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name:
            return None
        headers.append((name, value))
    return command, headers, end + len(_BLANK_LINE)
