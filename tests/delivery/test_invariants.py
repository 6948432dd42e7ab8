"""The twelve invariants of delivery (``airy_trio.delivery.client``), with the tests and the mutants for each.

A mutant is the source with one fault (``mutants``), which the random schedules or a directed test must detect. An
invariant without mutants has only tests.
"""

from collections.abc import Callable
from typing import Any

import pytest
from attrs import frozen

from tests.delivery import (
    test_batches,
    test_client,
    test_fanout,
    test_schedules,
    test_sender,
)
from tests.delivery.mutants import DIRECTED, MUTANTS
from tests.log import test_tail
from tests.sessions import test_awaits, test_faults, test_heartbeats, test_session
from tests.websocket import test_stream, test_transport

EVERY_SCHEDULE = (
    test_schedules.test_every_subscription_gets_exactly_what_follows_its_position,
    test_schedules.test_neighbours_get_exactly_what_follows_their_positions,
    test_schedules.test_each_subscription_gets_exactly_what_it_is_granted,
)


@frozen
class Invariant:
    """One promise, the tests that check it, and the mutants that break it."""

    promise: str
    tests: tuple[Callable[..., Any], ...]
    mutants: tuple[str, ...] = ()


INVARIANTS = (
    Invariant(
        "A transport takes a batch whole or not at all; the cursor advances if, and only if, it was taken.",
        (
            test_transport.test_full_socket_refuses_all,
            test_batches.test_a_cursor_moves_when_its_batch_is_committed,
            *EVERY_SCHEDULE,
        ),
        ("cursor moved on refusal", "cursor moved on refusal of a neighbour's batch"),
    ),
    Invariant(
        "The rest of a batch is pending, at most one for each client; nothing is written before it has left.",
        (
            test_transport.test_offer_is_refused_while_data_is_pending,
            test_transport.test_push_over_pending_data_is_an_error,
            test_stream.test_stream_refuses_an_offer_while_data_is_pending,
            test_stream.test_pending_data_leaves_before_a_control_frame,
        ),
        ("offer while pending", "offer to a socket while something is pending"),
    ),
    Invariant(
        "A task that waits while writing holds the stream's lock, and waits only while something is pending.",
        (
            test_stream.test_writers_take_turns,
            test_stream.test_cancelled_write_is_completed_by_the_next,
            test_stream.test_pending_data_leaves_before_a_control_frame,
        ),
    ),
    Invariant(
        "A client with something pending, or with work, never stays live.",
        (*EVERY_SCHEDULE, test_heartbeats.test_refused_or_partial_heart_beats_need_a_send_task),
        (
            "partial write not handed over",
            "partial write of a neighbour's batch not handed over",
            "refusal not handed over",
            "live although a subscription has work",
            "a neighbour's batch always reaches the end",
            "ACK not served",
            "SUBSCRIBE not served",
        ),
    ),
    Invariant(
        "Fan-out and send task never both write to a client; the step back to live is atomic with its condition.",
        (test_fanout.test_only_live_clients_are_written_to, *EVERY_SCHEDULE),
        (
            "checkpoint before live",
            "fan-out writes to a client that is behind",
            "a neighbour's batch to a client that is behind",
            "a client that is behind is not woken",
        ),
    ),
    Invariant(
        "A view holds the offsets of its destination that the tail holds; the tail serves what it has not evicted.",
        (
            test_tail.test_it_agrees_with_a_list,
            test_tail.test_a_quiet_destination_serves_old_cursors,
            test_fanout.test_a_position_before_the_tail_is_not_served_from_it,
        ),
        ("no evicted check in the fan-out", "a view forgets its evictions"),
    ),
    Invariant(
        "Under the lock the send task checks again: nothing follows the RECEIPT of an UNSUBSCRIBE.",
        (
            test_sender.test_unsubscribing_with_a_full_socket_ends_delivery,
            test_fanout.test_nothing_is_written_after_unsubscribe,
            test_fanout.test_no_batch_is_repeated_after_unsubscribe,
            *EVERY_SCHEDULE,
        ),
        (
            "subscription not checked again under the lock",
            "unsubscribed at a checkpoint",
            "a neighbour's batch after unsubscribe",
        ),
    ),
    Invariant(
        "The RECEIPT of a SUBSCRIBE comes before its first MESSAGE, and nothing is lost between.",
        (
            test_session.test_events_come_after_the_receipt_in_order,
            test_fanout.test_a_neighbour_whose_receipt_is_not_written_gets_nothing,
            *EVERY_SCHEDULE,
        ),
        ("served before its RECEIPT is written", "a neighbour's batch before the RECEIPT"),
    ),
    Invariant(
        "Nothing follows a Close frame: the stream is closing before the lock is waited for.",
        (
            test_stream.test_nothing_follows_a_close_frame,
            test_stream.test_waiting_writer_writes_nothing_after_a_close_frame,
            test_sender.test_nothing_is_sent_after_a_close_frame,
            test_fanout.test_a_closing_neighbour_gets_nothing,
        ),
        (
            "closing is set only with the lock",
            "written after a Close frame",
            "a neighbour's batch after a Close frame",
        ),
    ),
    Invariant(
        "The first disconnect reason wins; only the session closes the transport.",
        (
            test_client.test_the_first_disconnect_reason_wins,
            test_session.test_a_client_that_closes_is_answered,
            test_session.test_an_unanswered_close_is_aborted_in_time,
        ),
        ("the last reason wins",),
    ),
    Invariant(
        "A fault while one client is served disconnects only that client: fan-out, wheel, send task, session.",
        (
            test_fanout.test_fault_of_one_client_does_not_stop_the_fan_out,
            test_heartbeats.test_a_fault_of_one_client_does_not_stop_the_wheel,
            test_sender.test_a_failing_send_task_disconnects_only_its_client,
            test_faults.test_fault_at_any_await_ends_only_its_session,
            test_awaits.test_fault_at_any_await_ends_at_most_that_session,
        ),
        ("a fault of one client stops the fan-out", "a fault of a task leaves its session"),
    ),
    Invariant(
        "Events of one subscription come in order; between two of a connection none is promised.",
        (*EVERY_SCHEDULE, test_session.test_two_subscriptions_to_one_destination_have_a_cursor_each),
        ("events of a batch in another order",),
    ),
)

KNOWN = {mutant.fault for mutant in MUTANTS} | {mutant.fault for mutant, _ in DIRECTED}


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.promise)
def test_each_invariant_has_its_tests_and_mutants(invariant: Invariant) -> None:
    assert set(invariant.mutants) <= KNOWN
    for test in invariant.tests:
        assert test.__name__.startswith("test_")


def test_there_are_twelve() -> None:
    assert len({invariant.promise for invariant in INVARIANTS}) == 12
