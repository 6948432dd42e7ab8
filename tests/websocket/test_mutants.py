"""Whether the random schedules would notice: fan-out and send tasks with one fault each, which some seed must catch."""

import inspect
import textwrap
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from attrs import frozen
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.delivery import disconnects, fanout
from airy_trio.delivery.batches import Batches
from airy_trio.delivery.client import Client, ClientState, Subscription
from airy_trio.delivery.fanout import FanOut
from airy_trio.delivery.tasks import Tasks
from airy_trio.log.tail import Tail
from airy_trio.sessions import conversation
from airy_trio.sessions.conversation import Conversation
from airy_trio.testing.transport import MemoryTransport
from airy_trio.websocket.stream import FramedStream
from airy_trio.websocket.transport import SocketTransport
from tests.websocket import test_fanout, test_outlet, test_sender, test_subscriptions, test_tasks, test_wire
from tests.websocket.test_schedules import run_schedule

SEEDS = range(120)
"""Trio orders tasks by chance, so that a seed does not tell all: each mutant is caught by one of ten seeds or more."""


@frozen
class Mutant:
    """A fault: in the source of ``owner.name``, ``sound`` is replaced by ``unsound``.

    ``alike``: what only neighbours meet is looked for with so many clients that are alike; 0: with two of any kind.
    """

    fault: str
    owner: Any
    name: str
    sound: str
    unsound: str
    alike: int = 0

    def __str__(self) -> str:
        return self.fault

    @property
    def slice(self) -> int:
        """What ``YIELD_EVERY`` is meanwhile: neighbours share a slice, everything else goes wrong between slices."""
        return 256 if self.name in {"_serve_slice", "owe", "end"} else 1

    def function(self) -> Callable[..., Any]:
        original = getattr(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.sound) == 1, "the source has changed: the mutant must follow it"
        made: dict[str, Callable[..., Any]] = {}
        exec(source.replace(self.sound, self.unsound), original.__globals__, made)  # noqa: S102 - our own source
        return made[self.name]


MUTANTS = (
    Mutant(
        "cursor moved on refusal",
        FanOut,
        "serve",
        "if client.stream.offer(run.data, now):",
        "if client.stream.offer(run.data, now) or True:",
    ),
    Mutant(
        "cursor moved on refusal of what a neighbour took",
        FanOut,
        "_serve_slice",
        "if stream.closing or not transport.offer(data):",
        "if stream.closing or (not transport.offer(data) and False):",
        alike=4,
    ),
    Mutant(
        "partial write of what a neighbour took not handed over",
        FanOut,
        "_serve_slice",
        "if transport.pending or not to_the_end:",
        "if not to_the_end:",
        alike=4,
    ),
    Mutant(
        "checkpoint before live",
        fanout,
        "catch_up",
        "client.state = LIVE",
        "await trio.lowlevel.checkpoint(); client.state = LIVE",
        alike=2,
    ),
    Mutant(
        "live although somebody is hungry",
        fanout,
        "_caught_up",
        "return not any(subscription.hungry for subscription in client.subscriptions.values())",
        "return True",
    ),
    Mutant(
        "subscription not asked again under the lock",
        fanout,
        "_next_run",
        "client.subscriptions.get(subscription.number) is subscription",
        "True",
    ),
    Mutant(
        "partial write not handed over",
        FanOut,
        "serve",
        "client.stream.transport.pending or subscription.hungry",
        "subscription.hungry",
    ),
    Mutant(
        "refusal not handed over",
        FanOut,
        "serve",
        "client.stream.transport.pending or subscription.hungry",
        "client.stream.transport.pending",
    ),
    Mutant("ACK not served", Conversation, "_acknowledge", "for subscription in known:", "for subscription in ():"),
    Mutant(
        "SUBSCRIBE not served",
        conversation,
        "subscribe",
        "fanout.serve(subscription, trio.current_time())",
        "pass",
    ),
    Mutant(
        "no evicted check in the fan-out",
        FanOut,
        "serve",
        "subscription.owed or subscription.position.offset >= subscription.view.evicted",
        "True",
    ),
    Mutant("a view forgets that it has evicted", Tail, "_evict", "view.evicted = view.offsets[number - 1]", "pass"),
    Mutant(
        "events of a run in another order", Batches, "_join", "for event in events:", "for event in [*events][::-1]:"
    ),
)


DIRECTED = (
    (
        Mutant("offer while pending", MemoryTransport, "offer", "self._rest or ", ""),
        test_wire.test_stream_refuses_an_offer_while_data_is_pending,
    ),
    (
        Mutant(
            "offer to a socket while something is pending", SocketTransport, "offer", "if self.pending:", "if False:"
        ),
        lambda _clock: test_outlet.test_offer_is_refused_while_data_is_pending(),
    ),
    (
        Mutant(
            "closing is said when the lock is had",
            FramedStream,
            "close",
            "self.closing = True",
            "async with self.lock: self.closing = True",
        ),
        test_wire.test_waiting_writer_writes_nothing_after_a_close_frame,
    ),
    (
        Mutant("the last farewell wins", Client, "dismiss", "if self.farewell is None:", "if True:"),
        lambda _clock: test_subscriptions.test_the_first_farewell_wins(),
    ),
    (
        Mutant(
            "one client's trouble stops the fan-out",
            FanOut,
            "_serve_slice",
            "client.dismiss(farewell_after(fault, client.session))",
            "raise",
        ),
        partial(
            test_fanout.test_one_clients_trouble_does_not_stop_the_fan_out,
            trio.BrokenResourceError(),
            disconnects.GONE,
            monkeypatch=pytest.MonkeyPatch(),
        ),
    ),
    (
        Mutant(
            "one task's trouble leaves its session",
            Tasks,
            "_run",
            "self._client.dismiss(farewell_after(fault, self._client.session))",
            "raise",
        ),
        test_tasks.test_what_fails_dismisses_its_client_and_goes_no_further,
    ),
    (
        Mutant("fan-out writes to who is behind", FanOut, "serve", "if state is BEHIND:", "if False:"),
        partial(test_fanout.test_only_who_is_live_is_written_to, ClientState.BEHIND),
    ),
    (
        Mutant("who is behind is not woken", FanOut, "serve", "client.wake()", "pass"),
        partial(test_fanout.test_only_who_is_live_is_written_to, ClientState.BEHIND),
    ),
    (
        Mutant("unsubscribed while others ran", FanOut, "_serve_slice", "elif reader in view.readers:", "else:"),
        test_fanout.test_nothing_is_written_to_who_unsubscribed_while_others_ran,
    ),
    (
        Mutant("a neighbour's run to who unsubscribed", Subscription, "end", "self.repeats = False", "pass"),
        test_fanout.test_nothing_is_repeated_to_who_unsubscribed_while_others_ran,
    ),
    (
        Mutant("a neighbour's run whoever it is", FanOut, "_serve_slice", "reader.prefix is prefix", "True"),
        test_fanout.test_a_neighbour_with_the_same_cursor_and_another_id_gets_its_own,
    ),
    (
        Mutant("a run whatever the cursor", FanOut, "_serve_slice", "reader.position is after", "True"),
        test_fanout.test_a_neighbour_that_lacks_more_gets_more,
    ),
    (
        Mutant("a neighbour's run to who needs acks", FanOut, "_serve_slice", "reader.repeats", "True"),
        test_fanout.test_a_neighbour_that_needs_acks_gets_its_own,
    ),
    (
        Mutant("a neighbour's run before the RECEIPT", FanOut, "_serve_slice", "reader.repeats", "True"),
        test_fanout.test_a_neighbour_whose_receipt_is_not_written_gets_nothing,
    ),
    (
        Mutant(
            "served before its RECEIPT is written",
            conversation,
            "subscribe",
            "await write_receipt(client, request.receipt",
            "subscription.started = True; fanout.serve(subscription, 0); await write_receipt(client, request.receipt",
        ),
        test_fanout.test_the_receipt_of_a_subscribe_comes_before_what_it_is_owed,
    ),
    (
        Mutant("a neighbour's run beside what is owed", Subscription, "owe", "self.repeats = False", "pass"),
        test_fanout.test_a_neighbour_that_is_owed_something_gets_that_first,
    ),
    (
        Mutant("a neighbour's run to who is behind", FanOut, "_serve_slice", "client.state is LIVE", "True"),
        test_fanout.test_a_neighbour_that_is_behind_is_only_woken,
    ),
    (
        Mutant("a neighbour's run after a Close frame", FanOut, "_serve_slice", "stream.closing or ", ""),
        test_fanout.test_a_neighbour_that_was_told_goodbye_gets_nothing,
    ),
    (
        Mutant("a neighbour's run goes to the end", FanOut, "_serve_slice", " or not to_the_end", ""),
        test_fanout.test_neighbours_get_all_of_what_is_longer_than_a_run,
    ),
    (
        Mutant("written after a Close frame", fanout, "_next_run", "and not client.stream.closing", ""),
        test_sender.test_nothing_is_sent_after_a_close_frame,
    ),
    (
        Mutant("not live where nothing is pending", fanout, "_caught_up", "client.stream.transport.pending", "True"),
        test_sender.test_a_full_window_is_not_behind,
    ),
)
"""What chance hardly ever meets, or what only delays: each with the test that must notice."""


def fails(seed: int, alike: int) -> bool:
    schedule = partial(run_schedule, seed, alike or 2, alike=alike > 0)
    try:
        with capture_logs(processors=()):
            trio.run(schedule, clock=MockClock(autojump_threshold=0))
    except Exception:  # noqa: BLE001 - whatever a mutant does is a catch
        return True
    return False


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_schedules_notice(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "YIELD_EVERY", mutant.slice)
    monkeypatch.setattr(mutant.owner, mutant.name, mutant.function())
    assert any(fails(seed, mutant.alike) for seed in SEEDS)


@pytest.mark.parametrize("mutant, test", [pytest.param(*pair, id=pair[0].fault) for pair in DIRECTED])
def test_the_directed_tests_notice(
    mutant: Mutant, test: Callable[..., Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "YIELD_EVERY", mutant.slice)
    clock = MockClock(autojump_threshold=0)
    monkeypatch.setattr(mutant.owner, mutant.name, mutant.function())
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever a mutant does is a catch
        trio.run(test, clock, clock=clock)
