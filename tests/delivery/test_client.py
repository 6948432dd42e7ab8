"""The ack window, when a subscription has work, and the first disconnect reason of a client."""

import tracemalloc
from typing import cast

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from airy_trio.delivery import disconnects
from airy_trio.delivery.client import Client, ClientState, Subscription, Window
from airy_trio.delivery.framing import StompFraming
from airy_trio.events.destinations import EVERYTHING
from airy_trio.log.store import Position
from airy_trio.log.tail import View
from airy_trio.stomp.connection import ConnectionOptions
from airy_trio.stomp.frames import AckMode
from airy_trio.websocket.stream import FramedStream
from tests.delivery.rig import slot


def client() -> Client:
    return Client(StompFraming(ConnectionOptions(server="airy-trio/test"), "s1"), cast("FramedStream", None), slot())


def subscribed(window: Window | None = None) -> Subscription:
    subscription = Subscription(client(), 1, b"MESSAGE\n", Position("abcdef", 5), window=window, started=True)
    subscription.view = View(EVERYTHING, 0, 5)
    return subscription


@pytest.mark.parametrize(
    "mode, left", [(AckMode.CLIENT, 3), (AckMode.CLIENT_INDIVIDUAL, 1)], ids=["cumulative", "individual"]
)
def test_ack_frees_the_window_of_covered_events(mode: AckMode, left: int) -> None:
    window = Window(mode, 3)
    window.sent((4, 7))
    window.sent((9,))
    assert window.room == 0
    assert window.acknowledge(9)
    assert window.room == left


def test_a_cumulative_ack_leaves_later_events() -> None:
    window = Window(AckMode.CLIENT, 3)
    window.sent((4, 7, 9))
    assert window.acknowledge(7)
    assert window.room == 2
    assert window.acknowledge(9)


@pytest.mark.parametrize("mode", [AckMode.CLIENT, AckMode.CLIENT_INDIVIDUAL])
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60))
def test_window_agrees_with_a_set_of_offsets(mode: AckMode, steps: list[tuple[bool, int]]) -> None:
    window, model, newest = Window(mode, 100), set[int](), 0
    for is_sent, number in steps:
        if is_sent:
            newest += number
            window.sent((newest, newest + 2))
            newest += 2
            model |= {newest - 2, newest}
        else:
            assert window.acknowledge(number) == (number in model)
            if number in model:
                model -= {one for one in model if one <= number} if mode is AckMode.CLIENT else {number}
        assert (window.room, window.oldest) == (100 - len(model), min(model, default=None))


def test_the_largest_windows_fit_into_256_kib() -> None:
    in_flight_max = ConnectionOptions(server="airy-trio/test").in_flight_max
    offsets = range(10**17, 10**17 + 2 * in_flight_max, 2)  # every second event is of another destination
    tracemalloc.start()
    try:
        windows = [Window(AckMode.CLIENT_INDIVIDUAL, in_flight_max // 16) for _ in range(16)]
        for window, begin in zip(windows, range(0, in_flight_max, in_flight_max // 16), strict=True):
            for offset in offsets[begin : begin + in_flight_max // 16]:
                window.sent((offset,))
        assert sum(window.room for window in windows) == 0
        assert tracemalloc.get_traced_memory()[0] < 256 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", [AckMode.CLIENT, AckMode.CLIENT_INDIVIDUAL])
def test_unknown_and_repeated_acks_change_nothing(mode: AckMode) -> None:
    window = Window(mode, 3)
    window.sent((4, 7))
    assert not window.acknowledge(5)
    assert window.acknowledge(7)
    assert not window.acknowledge(7)


def test_a_subscription_has_work_if_events_and_room_exist() -> None:
    window = Window(AckMode.CLIENT, 1)
    subscription = subscribed(window)
    found = [subscription.has_work]
    subscription.view.last = 6
    found.append(subscription.has_work)
    window.sent((3,))
    found.append(subscription.has_work)
    window.acknowledge(3)
    found.append(subscription.has_work)
    subscription.started = False
    found.append(subscription.has_work)
    assert found == [False, True, False, True, False]


def test_only_equal_frames_are_shared() -> None:
    resuming = subscribed()
    resuming.resume_header = b"resume:resumed\n"
    acking = subscribed(Window(AckMode.CLIENT, 1))
    assert [one.shareable for one in (subscribed(), resuming, acking)] == [True, False, False]


async def test_the_first_disconnect_reason_wins() -> None:
    await trio.lowlevel.checkpoint()
    one = client()
    one.disconnect(disconnects.SILENT)
    one.disconnect(disconnects.GONE)
    assert one.reason is disconnects.SILENT
    assert one.state is ClientState.CLOSING
    assert one.scope.cancel_called


@pytest.mark.parametrize("mode", [AckMode.CLIENT, AckMode.CLIENT_INDIVIDUAL])
def test_window_holds_offsets_that_lie_far_apart(mode: AckMode) -> None:
    """A current state, for example, may consist of the first event of a log and its newest one."""
    far = 5_000_000_000
    window = Window(mode, 10)
    window.sent((1, 3))
    window.sent((far, far + 1, far + 2))
    assert window.acknowledge(far + 1)
    assert (window.oldest, window.room) == ((far + 2, 9) if mode is AckMode.CLIENT else (1, 6))
    assert window.acknowledge(far + 2)
    assert window.acknowledge(far) == window.acknowledge(1) == window.acknowledge(3) == (mode is not AckMode.CLIENT)
    assert (window.oldest, window.room) == (None, 10)
