"""The two kinds of protocol error, the client's and ours, are never taken for one another."""

from airy_trio.stomp.errors import LocalProtocolError, RemoteProtocolError


def test_a_remote_error_carries_all_that_its_error_frame_says() -> None:
    fault = RemoteProtocolError("400-x", "It is x.", receipt_id="r", headers=[("version", "1.2")])
    assert (fault.token, fault.prose, fault.receipt_id) == ("400-x", "It is x.", "r")
    assert fault.headers == (("version", "1.2"),)
    assert fault.fulfilled == []


def test_the_two_kinds_are_never_caught_as_one_another() -> None:
    assert not issubclass(RemoteProtocolError, LocalProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
