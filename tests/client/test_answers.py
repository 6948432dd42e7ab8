"""The client, and servers that answer badly or not at all: one clear error, or another attempt."""

from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio_websocket
from trio.testing import MockClock

from airy_trio import client
from airy_trio.app import serve
from airy_trio.client import BadAnswer, Refused, connection
from airy_trio.client.connection import OPEN_TIMEOUT_S
from tests.application import application
from tests.certificates import issue, trusting
from tests.client.rig import CONNECTED, RECEIPT, append, number_of, raw, scripted, take, url_of
from tests.sessions.serving import serving

Socket = trio_websocket.WebSocketConnection
MESSAGE = 'MESSAGE\nsubscription:0\nmessage-id:abcdef-6\ndestination:/events\n\n{"type":"a","payload":{"id":"t6"}}\0'
NO_POSITION = "RECEIPT\nreceipt-id:0\nresume:live\n\n\0"
NO_RESUME = "RECEIPT\nreceipt-id:0\nposition:abcdef-5\n\n\0"
OLD = "CONNECTED\nversion:1.1\nheart-beat:0,0\n\n\0"
DEEP = 100_000
"""More levels of JSON than any version of Python accepts."""
SILENT = "CONNECTED\nversion:1.2\nheart-beat:20000,0\n\n\0"


async def first(url: str) -> client.Event | client.Reset | client.State:
    with trio.fail_after(1000):
        async with client.open(url) as inbox:
            return await anext(inbox.events())


@pytest.mark.parametrize(
    "connected, receipt, message, error",
    [
        (OLD, "", "", "version '1.1' of STOMP instead of 1.2"),
        ("CONNECTED\nversion:1.2\nheart-beat:a,b\n\n\0", "", "", "heart-beat"),
        (f"CONNECTED\nversion:1.2\nheart-beat:0,{'9' * 400}\n\n\0", "", "", "heart-beat"),
        ("hello\0", "", "", "does not speak STOMP"),
        ("RECEIPT\nreceipt-id:0\n\n\0", "", "", "'RECEIPT' instead of CONNECTED"),
        (CONNECTED, NO_POSITION, "", "sent no position: None"),
        (CONNECTED, NO_RESUME, "", "resume=None"),
        (CONNECTED, CONNECTED, "", "'CONNECTED' instead of RECEIPT"),
        (CONNECTED, RECEIPT, MESSAGE.replace("abcdef-6", "6"), "sent no position: '6'"),
        (CONNECTED, RECEIPT, MESSAGE.replace("{", "", 1), "not JSON"),
        (CONNECTED, RECEIPT, MESSAGE.replace('"payload"', '"p"'), "not an event"),
        (CONNECTED, RECEIPT, MESSAGE.replace('"t6"', f"{'[' * DEEP}{']' * DEEP}"), "nested too deep"),
        (CONNECTED, RECEIPT, MESSAGE.replace("MESSAGE", "A" * 200), "does not speak STOMP"),
        (CONNECTED, RECEIPT, "x" * 3 * DEEP, "too large"),
    ],
)
async def test_bad_answer_is_one_error(  # noqa: PLR0917 - the first four are of a case
    connected: str, receipt: str, message: str, error: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MESSAGE_BYTES_MAX", int(2.5 * DEEP))

    async def answer(text: str, socket: Socket) -> None:
        if text.startswith("CONNECT"):
            await socket.send_message(connected)
        elif text.startswith("SUBSCRIBE"):
            await socket.send_message(receipt)
            await socket.send_message(message)

    async with scripted(answer) as url:
        with pytest.raises(BadAnswer, match=error):
            await first(url)


async def test_server_that_echoes_is_a_bad_answer(autojump_clock: MockClock) -> None:
    async def echo(text: str, socket: Socket) -> None:
        await socket.send_message(text)

    async with scripted(echo) as url:
        with pytest.raises(BadAnswer, match="'CONNECT' instead of CONNECTED"):
            await first(url)


async def test_frames_may_be_split_and_joined(autojump_clock: MockClock) -> None:
    async def answer(text: str, socket: Socket) -> None:
        if text.startswith("CONNECT"):
            await socket.send_message(CONNECTED[:12])
            await socket.send_message(CONNECTED[12:].encode())
        else:
            await socket.send_message("\n" + RECEIPT + MESSAGE)

    async with scripted(answer) as url:
        assert number_of(await first(url)) == 6


async def test_silent_connection_is_lost(autojump_clock: MockClock) -> None:
    connects: list[float] = []

    async def answer(text: str, socket: Socket) -> None:
        if text.startswith("CONNECT"):
            connects.append(trio.current_time())
            await socket.send_message(SILENT)
        else:
            await socket.send_message(RECEIPT)
            if len(connects) > 1:
                await socket.send_message(MESSAGE)

    async with scripted(answer) as url:
        await first(url)
    assert len(connects) == 2
    assert 50 <= connects[1] - connects[0] <= 51


async def test_attempt_without_an_answer_times_out(autojump_clock: MockClock) -> None:
    connects: list[float] = []

    async def answer(text: str, socket: Socket) -> None:
        connects.append(trio.current_time())
        await trio.sleep_forever()

    async with scripted(answer) as url:
        with trio.move_on_after(3 * OPEN_TIMEOUT_S):
            await first(url)
    assert len(connects) == 3


async def test_close_code_counts_if_there_is_no_error_frame(autojump_clock: MockClock) -> None:
    async def forbid(text: str, socket: Socket) -> None:
        await socket.aclose(4403, "no")

    async with scripted(forbid) as url:
        with pytest.raises(Refused) as refused:
            await first(url)
    assert (refused.value.token, refused.value.prose) == ("403-forbidden", "no")


@pytest.mark.parametrize("code", [1002, 1007])
async def test_answer_that_is_no_websocket_is_a_bad_answer(code: int, autojump_clock: MockClock) -> None:
    """trio-websocket reports its own Close frame about it as if it had come from the server."""

    async def fail(text: str, socket: Socket) -> None:
        await socket.aclose(code, "Invalid opcode 0x3")

    async with scripted(fail) as url:
        with pytest.raises(BadAnswer, match="is not valid WebSocket: Invalid opcode 0x3"):
            await first(url)


@pytest.mark.parametrize("status", [b"403 Forbidden", b"404 Not Found", b"301 Moved", b"401 Unauthorized"])
async def test_http_refusal_is_one_error(status: bytes, autojump_clock: MockClock) -> None:
    async with raw(b"HTTP/1.1 " + status + b"\r\ncontent-length: 3\r\n\r\nno!") as url:
        with pytest.raises(Refused, match="no!") as refused:
            await first(url)
    assert refused.value.token == status[:3].decode()
    assert refused.value.prose == "no!"


async def test_wrong_path_of_a_real_server_is_refused(autojump_clock: MockClock) -> None:
    async with serving() as server:
        with pytest.raises(Refused) as refused:
            await first(f"{url_of(server)}/elsewhere")
        assert refused.value.token == "404"


@pytest.mark.parametrize(
    "answer, least_s, most_s",
    [
        (b"HTTP/1.1 503 Busy\r\nretry-after: 30\r\ncontent-length: 0\r\n\r\n", 30, 30.5),
        (b"HTTP/1.1 503 Busy\r\nretry-after: 3000\r\ncontent-length: 0\r\n\r\n", 60, 60.5),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", 0, 0.5),
        (b"HTTP/1.1 503 Busy\r\nretry-after: " + b"9" * 5000 + b"\r\ncontent-length: 0\r\n\r\n", 0, 0.5),
        (b"HTTP/1.1 429 Slowly\r\ncontent-length: 0\r\n\r\n", 15, 15.5),
        (b"SSH-2.0-OpenSSH_9\r\n", 0, 0.5),
        (b"\x15\x03\x01\x00\x02\x02\x46", 0, 0.5),  # an alert: this is the port of a server with TLS
        (b"HTTP/1.1 101 OK\r\nupgrade: websocket\r\nconnection: \xff\r\n\r\n", 0, 0.5),
        (b"", 0, 0.5),
    ],
)
async def test_pause_after_a_temporary_fault(
    answer: bytes, least_s: float, most_s: float, autojump_clock: MockClock
) -> None:
    gone = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    async with raw(answer, gone) as url:
        begun = trio.current_time()
        with pytest.raises(Refused):
            await first(url)
        assert least_s <= trio.current_time() - begun <= most_s


async def test_pauses_grow_to_a_limit_and_are_random(autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def serve_nothing(stream: trio.SocketStream) -> None:
        times.append(trio.current_time())
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, serve_nothing, [listener])
        async with client.open(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}") as inbox:
            with trio.move_on_after(3000):
                await anext(inbox.events())
        nursery.cancel_scope.cancel()
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[0] <= 0.5
    assert pauses[1] <= 1
    assert max(pauses) <= 30
    assert 100 < len(pauses) < 400  # 15 s on average
    assert len({round(pause, 3) for pause in pauses}) > len(pauses) / 2


async def test_certificate_is_verified(tmp_path: Path) -> None:
    files = issue(tmp_path)
    with trio.fail_after(30), application(f"sqlite:///{tmp_path / 'app.db'}", create=True) as app:
        settings = app.migrate(f"[listener]\nport = 0\n{files.listener}")
        async with trio.open_nursery() as nursery:
            address = await nursery.start(serve, settings)
            async with client.open(address.url, tls=trusting()) as inbox:
                events = inbox.events(begin="oldest")
                app.tag("t1")
                assert number_of(await anext(events)) == 1
            async with client.open(address.url) as inbox:
                with pytest.raises(BadAnswer, match="certificate"):
                    await anext(inbox.events())
            nursery.cancel_scope.cancel()


async def test_wss_to_a_server_without_tls_is_tried_again(autojump_clock: MockClock) -> None:
    async with serving() as server:
        await append(server, 1, 1)
        async with client.open(url_of(server).replace("ws:", "wss:")) as inbox:
            with trio.move_on_after(100) as waiting:
                await take(inbox.events(), 1)
            assert waiting.cancelled_caught
