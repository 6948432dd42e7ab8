"""What a decoder of frames may take, and what it has taken."""

from attrs import frozen


@frozen(kw_only=True)
class Limits:
    """What one frame may be.

    ``frame_bytes_max`` counts from the command's first octet to the NUL; ``command_bytes_max`` and
    ``header_line_bytes_max`` count a line without its LF, as it is on the wire.
    """

    frame_bytes_max: int
    header_count_max: int
    header_line_bytes_max: int
    command_bytes_max: int


@frozen(kw_only=True)
class DecoderStatistics:
    """Octets fed, octets that searches went over, octets held for the next call, frames given."""

    fed_bytes: int
    searched_bytes: int
    held_bytes: int
    frames: int
