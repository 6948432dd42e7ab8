"""The events of the benchmark."""

import json
import time

from bench.payload import BODY_BYTES, body


def test_every_body_has_the_same_length_and_is_an_event() -> None:
    before = time.monotonic_ns()
    for number in (1, 999, 123_456_789):
        text = body(number)
        assert len(text.encode()) == BODY_BYTES
        content = json.loads(text)["payload"]["message"]["content"]
        assert content["n"] == number
        assert before <= content["t"] <= time.monotonic_ns()


def test_messages_are_numbered_within_each_conversation() -> None:
    counted = [
        (payload["conversation_id"], payload["message"]["content"]["n"])
        for payload in (json.loads(body(number, 3))["payload"] for number in range(1, 8))
    ]
    assert counted == [("c0", 1), ("c1", 1), ("c2", 1), ("c0", 2), ("c1", 2), ("c2", 2), ("c0", 3)]
