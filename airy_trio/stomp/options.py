"""The limits and names of a connection, each with its unit; where they are configured is not known here."""

from typing import Final

from attrs import Attribute, field, frozen, validators

from airy_trio.stomp.encoder import plain
from airy_trio.stomp.limits import Limits

IN_FLIGHT_DEFAULT: Final = 20_000

_positive = validators.ge(1)


def _is_plain(_instance: object, _attribute: "Attribute[str]", value: str) -> None:
    plain(value)


@frozen(kw_only=True)
class ConnectionOptions:
    """What each connection may do and how the server names itself; one object serves them all.

    The smaller ``…_before_connect`` limits hold until CONNECT was accepted. ``heartbeat_ms`` is offered in both
    directions, 0 is none. ``server`` must be a header value that every client reads (``encoder.plain``, else
    ``LocalProtocolError``). ``transaction_acks_max`` bounds all open transactions together. ``id_bytes_max`` is for the
    id of a subscription and the name of a transaction; these and destinations are kept while they are open, and count
    in octets of UTF-8 without escapes. ``in_flight_max`` bounds the sum of ``prefetch-count`` over the subscriptions
    that acknowledge; by default each may have ``prefetch_default``.
    """

    server: str = field(validator=_is_plain)
    heartbeat_ms: int = field(default=30_000, validator=validators.ge(0))

    frame_bytes_max: int = field(default=65_536, validator=_positive)
    header_count_max: int = field(default=64, validator=_positive)
    header_line_bytes_max: int = field(default=8_192, validator=_positive)
    command_bytes_max: int = field(default=32, validator=_positive)

    frame_bytes_max_before_connect: int = field(default=4_096, validator=_positive)
    header_count_max_before_connect: int = field(default=32, validator=_positive)
    header_line_bytes_max_before_connect: int = field(default=3_072, validator=_positive)
    command_bytes_max_before_connect: int = field(default=16, validator=_positive)

    id_bytes_max: int = field(default=512, validator=_positive)
    destination_bytes_max: int = field(default=512, validator=_positive)
    subscriptions_max: int = field(default=16, validator=_positive)
    transactions_max: int = field(default=16, validator=_positive)
    transaction_acks_max: int = field(default=10_000, validator=_positive)
    prefetch_default: int = field(default=256, validator=_positive)
    prefetch_max: int = field(default=10_000, validator=_positive)
    in_flight_max: int = field(validator=_positive)

    @in_flight_max.default
    def _in_flight_max(self) -> int:
        return max(IN_FLIGHT_DEFAULT, self.subscriptions_max * self.prefetch_default)

    limits: Limits = field(init=False, repr=False)
    """Of a frame after CONNECT."""
    limits_before_connect: Limits = field(init=False, repr=False)
    """Of the first frame: none is larger than it is after CONNECT."""

    @limits.default
    def _limits(self) -> Limits:
        return Limits(
            frame_bytes_max=self.frame_bytes_max,
            header_count_max=self.header_count_max,
            header_line_bytes_max=self.header_line_bytes_max,
            command_bytes_max=self.command_bytes_max,
        )

    @limits_before_connect.default
    def _limits_before_connect(self) -> Limits:
        return Limits(
            frame_bytes_max=min(self.frame_bytes_max_before_connect, self.frame_bytes_max),
            header_count_max=min(self.header_count_max_before_connect, self.header_count_max),
            header_line_bytes_max=min(self.header_line_bytes_max_before_connect, self.header_line_bytes_max),
            command_bytes_max=min(self.command_bytes_max_before_connect, self.command_bytes_max),
        )
