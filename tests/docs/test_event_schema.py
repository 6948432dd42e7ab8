"""The schema of events and its TypeScript form accept what the codec writes, and refuse anything else."""

import copy
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from airy_trio.capture.feed import ChangedObject
from airy_trio.events.models import TYPES, Event, Json
from airy_trio.events.translate import EventsOptions, EventTooLargeError, encode, translate
from tests.clients.client_processes import FOLDER as CLIENTS
from tests.clients.client_processes import missing
from tests.docs.reference import FOLDER
from tests.events.rows import altered, any_object
from tests.events.test_codec import BODIES, MESSAGE, METADATA
from tests.processes import Program, running

TSC: Final = CLIENTS / "node_modules" / "typescript" / "bin" / "tsc"
TIMEOUT_S: Final = 40.0
LARGE: Final = Json('{"text":"' + "x" * 500 + '"}')


@cache
def validator() -> Draft202012Validator:
    found = json.loads((FOLDER / "events.schema.json").read_text())
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


def sample(event: Event) -> Any:  # noqa: ANN401 - what JSON holds
    return json.loads(encode(event, 10_000)[0])


def objects(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:  # noqa: ANN401 - what JSON holds
    """Yield the path of each object in a body, except for objects from the database."""
    if isinstance(value, dict) and path[-1:] not in {("content",), ("metadata",)}:
        yield path
        for name, inner in value.items():
            yield from objects(inner, (*path, name))


def wrong(event: Event) -> Iterator[Any]:
    """Yield bodies with one field too few, one too many, or a value of another type."""
    right = sample(event)
    for path in objects(right):
        for name in [*_at(right, path), "more"]:
            for change in ("remove", "number", "null"):
                body = copy.deepcopy(right)
                inner = _at(body, path)
                if change == "remove" and name in inner:
                    del inner[name]
                elif name != "content":
                    inner[name] = 1 if change == "number" else None
                else:
                    continue
                yield body


def _at(body: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - what JSON holds
    for name in path:
        body = body[name]
    return body


def test_there_is_a_sample_of_each_type() -> None:
    assert {event.type for event, _ in BODIES} == set(TYPES)


@pytest.mark.parametrize("event", [event for event, _ in BODIES], ids=[event.type for event, _ in BODIES])
def test_schema_accepts_each_type_and_refuses_what_differs_from_it(event: Event) -> None:
    validator().validate(sample(event))
    bodies = list(wrong(event))
    assert len(bodies) > 5
    assert [body for body in bodies if validator().is_valid(body)] == []


@pytest.mark.parametrize(
    "changes",
    [{"delivery_state": "sent"}, {"sent_at": "2020-10-25T21:24:54Z"}, {"sent_at": "2020-10-25 21:24:54.560"}],
    ids=str,
)
def test_schema_refuses_other_values_of_a_message(changes: dict[str, Any]) -> None:
    assert not validator().is_valid(sample(altered(MESSAGE, **changes)))


def test_schema_refuses_another_subject_and_another_type() -> None:
    assert not validator().is_valid(sample(altered(METADATA, subject="tag")))
    assert not validator().is_valid(sample(MESSAGE) | {"type": "message.read"})
    assert not validator().is_valid(sample(MESSAGE) | {"type": "tag.updated"})


@pytest.mark.parametrize("event", [altered(MESSAGE, content=LARGE), altered(METADATA, metadata=LARGE)])
def test_schema_accepts_truncated_bodies(event: Event) -> None:
    body, truncated = encode(event, 400)
    assert truncated
    validator().validate(json.loads(body))


@given(any_object(), st.integers(0, 600), st.booleans())
def test_schema_accepts_whatever_is_sent(row: ChangedObject, body_bytes_max: int, deletes: bool) -> None:
    for event in translate([row], EventsOptions(deletes=deletes)).events:
        try:
            body, _ = encode(event, body_bytes_max)
        except EventTooLargeError:
            continue
        validator().validate(json.loads(body))


PROGRAM: Final = """import type { AiryEvent, Truncated } from './events';

const sent: AiryEvent[] = [
%s
];
const cut: Truncated = { truncated: true };

export function summary(event: AiryEvent): string {
  switch (event.type) {
    case 'message.updated': return event.payload.message.content === cut ? '' : event.payload.message.source;
    case 'message.deleted': return event.payload.message.id;
    case 'metadata.updated': return event.payload.subject;
    case 'channel.updated': return event.payload.connected ? event.payload.id : '';
    case 'tag.updated': return event.payload.color;
    case 'tag.deleted': return event.payload.id;
  }
}
sent.map(summary);
"""


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 10)
async def test_typescript_accepts_what_is_sent_and_nothing_else(tmp_path: Path) -> None:
    if reason := missing("tsc.mjs"):
        pytest.skip(reason)
    (tmp_path / "events.d.ts").write_text((FOLDER / "events.d.ts").read_text())
    sent = [sample(event) for event, _ in BODIES]
    sent += [json.loads(encode(altered(MESSAGE, content=LARGE), 400)[0])]
    (tmp_path / "right.ts").write_text(PROGRAM % ",\n".join(map(json.dumps, sent)))
    bodies = [body for event, _ in BODIES for body in wrong(event)]
    (tmp_path / "wrong.ts").write_text(
        "import type { AiryEvent } from './events';\n"
        + "".join(
            f"// @ts-expect-error\nexport const e{number}: AiryEvent = {json.dumps(body)};\n"
            for number, body in enumerate(bodies)
        )
    )
    command = [shutil.which("node") or "", str(TSC), "--strict", "--noEmit", "right.ts", "wrong.ts"]
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, command, folder=tmp_path) as tsc:
            code = await tsc.wait()
    assert (code, tsc.out.all) == (0, [])
