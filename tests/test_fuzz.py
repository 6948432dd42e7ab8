"""The targets of the fuzzer run with their first inputs, so that they still work when fuzzing starts again."""

import pytest

from airy_trio.stomp.frames import Acknowledge, Connect, Disconnect, Subscribe, Unsubscribe
from fuzz.targets import SEEDS, TARGETS, requests_of


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", [b"", b"\0", *SEEDS])
def test_targets_pass_with_their_seeds(target: str, seed: bytes) -> None:
    TARGETS[target](seed)


def test_seeds_reach_every_kind_of_request_and_a_fault() -> None:
    found = [one for seed in SEEDS for one in requests_of([seed[2:]])]
    assert {type(one) for one in found} == {Connect, Subscribe, Unsubscribe, Acknowledge, Disconnect, tuple}
    assert ("403-send-not-allowed", "Clients cannot send messages to this server.", "s") in found
