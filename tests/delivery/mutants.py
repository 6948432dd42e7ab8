"""Mutants of delivery: its source with one fault each, which the random schedules or a directed test must detect.

Not part of the default run: `make mutants`.
"""

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
from airy_trio.delivery.client import Client, ClientState, Subscription
from airy_trio.delivery.fanout import Batches, FanOut, Senders
from airy_trio.log.reads import Page, Reads
from airy_trio.log.tail import Tail
from airy_trio.sessions.conversation import Conversation
from airy_trio.websocket.stream import FramedStream
from airy_trio.websocket.transport import SocketTransport
from tests.delivery import test_batches, test_client, test_fanout, test_sender, test_state
from tests.delivery.test_schedules import run_schedule
from tests.log import test_reads
from tests.memory_transport import MemoryTransport
from tests.websocket import test_stream, test_transport

SEEDS = range(120)
"""Trio schedules tasks in random order, so one seed proves nothing. At least one seed in ten detects each mutant."""


CHECKPOINT_BEFORE_LIVE = """\
if client.state is BEHIND and not stream.transport.pending and not any(
            one.has_work for one in client.subscriptions.values()
        ):
            await trio.lowlevel.checkpoint()
            client.state = LIVE"""


TAIL_ALONE = "subscription.position.offset >= subscription.view.evicted"


@frozen
class Mutant:
    """A fault: in the source of ``owner.name``, ``sound`` is replaced by ``unsound``.

    ``alike``: the number of identical clients in a schedule, for faults that only neighbours meet; 0: two of any kind.
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
        """The value of ``YIELD_EVERY``: neighbours must share a slice; all other faults show between slices."""
        return 256 if self.name in {"_serve_slice", "end"} else 1

    def function(self) -> Callable[..., Any]:
        original = getattr(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.sound) == 1, "the source has changed: change the mutant too"
        made: dict[str, Callable[..., Any]] = {}
        exec(source.replace(self.sound, self.unsound), original.__globals__, made)  # noqa: S102 - our own source
        return made[self.name]


MUTANTS = (
    Mutant(
        "cursor moved on refusal",
        FanOut,
        "serve",
        "if client.stream.offer(batch.data, now):",
        "if client.stream.offer(batch.data, now) or True:",
    ),
    Mutant(
        "cursor moved on refusal of a neighbour's batch",
        FanOut,
        "_serve_slice",
        "if stream.closing or not transport.offer(data):",
        "if stream.closing or (not transport.offer(data) and False):",
        alike=4,
    ),
    Mutant(
        "partial write of a neighbour's batch not handed over",
        FanOut,
        "_serve_slice",
        "if transport.pending or not reaches_end:",
        "if not reaches_end:",
        alike=4,
    ),
    Mutant(
        "checkpoint before live",
        Senders,
        "_catch_up",
        "if client.catch_up():",
        CHECKPOINT_BEFORE_LIVE,
        alike=2,
    ),
    Mutant(
        "live although a subscription has work",
        Client,
        "catch_up",
        "if any(subscription.has_work for subscription in self.subscriptions.values()):",
        "if False:",
    ),
    Mutant(
        "subscription not checked again under the lock",
        Senders,
        "_may_send",
        "client.subscriptions.get(subscription.number) is subscription",
        "True",
    ),
    Mutant(
        "partial write not handed over",
        FanOut,
        "serve",
        "client.stream.transport.pending or subscription.has_work",
        "subscription.has_work",
    ),
    Mutant(
        "refusal not handed over",
        FanOut,
        "serve",
        "client.stream.transport.pending or subscription.has_work",
        "client.stream.transport.pending",
    ),
    Mutant("ACK not served", Conversation, "_acknowledge", "for subscription in known:", "for subscription in ():"),
    Mutant(
        "SUBSCRIBE not served",
        Conversation,
        "_subscribe",
        "services.fanout.serve(subscription, trio.current_time())",
        "pass",
    ),
    Mutant(
        "no evicted check in the fan-out",
        FanOut,
        "serve",
        "subscription.in_tail",
        "subscription.replay is None",
    ),
    Mutant(
        "a page of the store counts as sent after its first batch",
        Batches,
        "of_page",
        "if offsets[-1] == last",
        "if True",
    ),
    Mutant("a view forgets its evictions", Tail, "_evict", "view.evicted = view.offsets[number - 1]", "pass"),
    Mutant(
        "events of a batch in another order", Batches, "_join", "for event in events:", "for event in [*events][::-1]:"
    ),
)


async def with_small_pages(test: Callable[..., Awaitable[None]], *arguments: Any) -> None:  # noqa: ANN401 - any test's
    with pytest.MonkeyPatch.context() as patch:
        test_state.make_pages_small(patch)
        if "monkeypatch" in inspect.signature(test).parameters:
            arguments = (*arguments, patch)
        await test(*arguments)


DIRECTED = (
    (
        Mutant("offer while pending", MemoryTransport, "offer", "self._rest or ", ""),
        test_stream.test_stream_refuses_an_offer_while_data_is_pending,
    ),
    (
        Mutant(
            "offer to a socket while something is pending", SocketTransport, "offer", "if self.pending:", "if False:"
        ),
        lambda _clock: test_transport.test_offer_is_refused_while_data_is_pending(),
    ),
    (
        Mutant(
            "closing is set only with the lock",
            FramedStream,
            "close",
            "self.closing = True",
            "async with self.lock: self.closing = True",
        ),
        test_stream.test_waiting_writer_writes_nothing_after_a_close_frame,
    ),
    (
        Mutant("the last reason wins", Client, "disconnect", "if self.reason is None:", "if True:"),
        lambda _clock: test_client.test_the_first_disconnect_reason_wins(),
    ),
    (
        Mutant(
            "a fault of one client stops the fan-out",
            FanOut,
            "_serve_slice",
            "client.disconnect(reason_after(fault, client.session))",
            "raise",
        ),
        partial(
            test_fanout.test_fault_of_one_client_does_not_stop_the_fan_out,
            trio.BrokenResourceError(),
            disconnects.GONE,
            monkeypatch=pytest.MonkeyPatch(),
        ),
    ),
    (
        Mutant(
            "a fault of a task leaves its session",
            Senders,
            "_send",
            "client.disconnect(reason_after(fault, client.session))",
            "raise",
        ),
        test_sender.test_a_failing_send_task_disconnects_only_its_client,
    ),
    (
        Mutant("fan-out writes to a client that is behind", FanOut, "serve", "if state is BEHIND:", "if False:"),
        partial(test_fanout.test_only_live_clients_are_written_to, ClientState.BEHIND),
    ),
    (
        Mutant("a client that is behind is not woken", FanOut, "serve", "client.wake()", "pass"),
        partial(test_fanout.test_only_live_clients_are_written_to, ClientState.BEHIND),
    ),
    (
        Mutant("unsubscribed at a checkpoint", FanOut, "_serve_slice", "elif reader in view.readers:", "else:"),
        test_fanout.test_nothing_is_written_after_unsubscribe,
    ),
    (
        Mutant("a neighbour's batch after unsubscribe", Subscription, "end", "self.in_step = False", "pass"),
        test_fanout.test_no_batch_is_repeated_after_unsubscribe,
    ),
    (
        Mutant("a neighbour's batch with another prefix", FanOut, "_serve_slice", "reader.prefix is prefix", "True"),
        test_fanout.test_neighbour_with_another_id_gets_a_batch_of_its_own,
    ),
    (
        Mutant("a neighbour's batch at another position", FanOut, "_serve_slice", "reader.position is after", "True"),
        test_fanout.test_a_neighbour_that_lacks_more_gets_more,
    ),
    (
        Mutant("a neighbour's batch without acks", FanOut, "_serve_slice", "reader.in_step", "True"),
        test_fanout.test_neighbour_that_needs_acks_gets_another_batch,
    ),
    (
        Mutant("a neighbour's batch before the RECEIPT", FanOut, "_serve_slice", "reader.in_step", "True"),
        test_fanout.test_a_neighbour_whose_receipt_is_not_written_gets_nothing,
    ),
    (
        Mutant(
            "served before its RECEIPT is written",
            Conversation,
            "_subscribe",
            "await self._send_receipt(",
            "subscription.start(); services.fanout.serve(subscription, 0); await self._send_receipt(",
        ),
        test_fanout.test_the_receipt_of_a_subscribe_precedes_its_replay,
    ),
    (
        Mutant(
            "a neighbour's batch to a client that is behind", FanOut, "_serve_slice", "client.state is LIVE", "True"
        ),
        test_fanout.test_a_neighbour_that_is_behind_is_only_woken,
    ),
    (
        Mutant("a neighbour's batch after a Close frame", FanOut, "_serve_slice", "stream.closing or ", ""),
        test_fanout.test_a_closing_neighbour_gets_nothing,
    ),
    (
        Mutant("a neighbour's batch always reaches the end", FanOut, "_serve_slice", " or not reaches_end", ""),
        test_fanout.test_neighbours_get_more_than_one_batch_completely,
    ),
    (
        Mutant("written after a Close frame", Senders, "_may_send", "and not client.stream.closing", ""),
        test_sender.test_nothing_is_sent_after_a_close_frame,
    ),
    (
        Mutant(
            "a page of the store is sent from its beginning",
            Batches,
            "of_page",
            "(events := page.events_after(position.offset))",
            "(events := page.events)",
        ),
        lambda _clock: test_batches.test_a_page_is_sent_from_the_position_to_its_end(),
    ),
    (
        Mutant(
            "a page of the store is shared with a client that acknowledges",
            Batches,
            "of_page",
            "self._of_pages.get(key) if subscription.shareable else None",
            "self._of_pages.get(key)",
        ),
        lambda _clock: test_batches.test_clients_at_one_position_of_a_page_share_its_batches(),
    ),
    (
        Mutant(
            "a retained page covers every position",
            Page,
            "covers",
            "self.after.offset <= position.offset <= self.upto",
            "True",
        ),
        lambda _clock: test_reads.test_pages_agree_with_the_store(1),
    ),
    (
        Mutant(
            "a page reaches beyond the head", Reads, "_read", "in stored if event.offset <= until.offset", "in stored"
        ),
        lambda _clock: test_reads.test_a_page_ends_at_the_head_of_this_node(),
    ),
    (
        Mutant(
            "a replay reaches beyond its end",
            Reads,
            "_read",
            "(after.offset) if event.offset <= until.offset)",
            "(after.offset))",
        ),
        lambda _clock: test_reads.test_a_replay_has_no_events_after_its_end_that_an_earlier_read_has_found(),
    ),
    (
        Mutant("the fan-out forgets the state", FanOut, "serve", "subscription.in_tail", TAIL_ALONE),
        test_state.test_fan_out_sends_nothing_before_the_state,
    ),
    (
        Mutant("the send task forgets the state", Senders, "_serve_subscription", "subscription.in_tail", TAIL_ALONE),
        partial(with_small_pages, test_state.test_state_is_sent_in_pages, 5),
    ),
    (
        Mutant("a state completed twice", Senders, "_send_one", "subscription.replay is not None and", ""),
        partial(with_small_pages, test_state.test_growth_during_the_state_completes_it_once),
    ),
    (
        Mutant(
            "a state whose last event has gone is never complete",
            Senders,
            "_send_one",
            "subscription.completes_state = True",
            "pass",
        ),
        partial(with_small_pages, test_state.test_last_event_that_is_superseded_between_pages),
    ),
    (
        Mutant("every page completes the state", Batches, "of_page", "last if page.completes_state else None", "last"),
        partial(with_small_pages, test_state.test_state_is_sent_in_pages, 5),
    ),
    (
        Mutant("a state without an end", Subscription, "commit", "self._leave_replay()", "pass"),
        partial(with_small_pages, test_state.test_growth_during_the_state_completes_it_once),
    ),
    (
        Mutant("a state whose last event has gone has no end", Subscription, "skip_to", "self._leave_replay()", "pass"),
        lambda _clock: test_batches.test_a_cursor_leaves_the_state_at_its_end(),
    ),
    (
        Mutant(
            "no look at the event after a page",
            Reads,
            "_read_replay",
            "min(self._events_max, len(events) - 1)",
            "self._events_max",
        ),
        lambda _clock: test_reads.test_last_page_of_a_replay_has_events(100, 1),
    ),
    (
        Mutant(
            "a large event is never the last",
            Reads,
            "_read_replay",
            "len(events) > 1 or",
            "events or",
        ),
        partial(test_state.test_large_events_fill_pages, 2),
    ),
    (
        Mutant("a page of the log for the state", Reads, "_page_at_once", "and page.replay == replay", ""),
        partial(with_small_pages, test_state.test_pages_of_the_state_are_no_pages_of_the_log),
    ),
    (
        Mutant(
            "a position within the state expires",
            fanout,
            "_has_expired",
            "position if subscription.replay is None else position.at(max(position.offset, subscription.replay.since))",
            "position",
        ),
        partial(with_small_pages, test_state.test_position_below_the_floor_does_not_expire_within_the_state),
    ),
    (
        Mutant(
            "the end of the state never expires",
            fanout,
            "_has_expired",
            "if reached.epoch != floor.epoch or",
            "if subscription.replay is not None or reached.epoch != floor.epoch or",
        ),
        partial(with_small_pages, test_state.test_end_of_the_state_below_the_floor_expires),
    ),
    (
        Mutant("never live again", Client, "catch_up", "self.stream.transport.pending", "True"),
        test_sender.test_a_full_window_is_not_behind,
    ),
)
"""Faults that random schedules rarely reach, or that only cause a delay, each with the test that must detect it."""


def fails(seed: int, alike: int) -> bool:
    schedule = partial(run_schedule, seed, alike or 2, alike=alike > 0)
    try:
        with capture_logs(processors=()):
            trio.run(schedule, clock=MockClock(autojump_threshold=0))
    except Exception:  # noqa: BLE001 - any failure is a catch
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
    def run() -> None:
        clock = MockClock(autojump_threshold=0)
        trio.run(test, clock, clock=clock)

    monkeypatch.setattr(fanout, "YIELD_EVERY", mutant.slice)
    run()  # without the mutant it passes
    monkeypatch.setattr(mutant.owner, mutant.name, mutant.function())
    with pytest.raises(Exception):  # noqa: B017, PT011 - any failure is a catch
        run()
