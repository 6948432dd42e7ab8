"""The two kinds of protocol error."""

from airy_trio.stomp.errors import LocalProtocolError, RemoteProtocolError


def test_remote_error_has_the_content_of_its_error_frame() -> None:
    fault = RemoteProtocolError("400-x", "It is x.", receipt_id="r", headers=[("version", "1.2")])
    assert (fault.token, fault.prose, fault.receipt_id) == ("400-x", "It is x.", "r")
    assert fault.headers == (("version", "1.2"),)
    assert fault.fulfilled == []


def test_neither_kind_of_error_is_the_other() -> None:
    assert not issubclass(RemoteProtocolError, LocalProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
