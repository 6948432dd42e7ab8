"""The two ways to write to a client: STOMP in a WebSocket, and an event stream over HTTP.

Both use the same cursors. The fan-out, the send tasks and the shared batches handle finished bytes, which depend only
on the event and the ``prefix`` of the subscription. A STOMP subscription and an event stream never have the same
prefix, so they never share a batch. This module has what differs: the bytes of events, answers, heart-beats and the
end.

A request for an event stream is CONNECT and SUBSCRIBE in one. The response begins when the subscription has started, a
heart-beat is due (because the store is unavailable), or the session ends, whichever is first. Until then the request
can still be refused by status:

    reconnect, in the catalogue         before the stream has begun             within the stream
    --------------------------------    ------------------------------------    -------------------
    yes, later                          a stream with ``event: disconnect``     ``event: disconnect``
    with new credentials                401                                     ``event: disconnect``
    no                                  the number of the token, such as 403;   ``event: disconnect``
                                        204 for a client that has had a stream

After any status but 200 an ``EventSource`` never reconnects. Some other clients reconnect after 403, but all stop after
204, which the HTML standard provides for this. A client without an earlier stream gets the status instead, because its
body has the reason.
"""
# ruff: noqa: ARG002, D102 - both framings have the same methods, which are described once

import json
import random
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, NoReturn

from airy_trio.delivery.disconnects import PROTOCOL_ERROR, DisconnectReason, Reconnect
from airy_trio.events.destinations import ROOT
from airy_trio.log.store import StoredEvent
from airy_trio.stomp.codec import EOL, NUL, header, message_head
from airy_trio.stomp.connection import Connection
from airy_trio.stomp.errors import RemoteProtocolError
from airy_trio.stomp.frames import Connect, HeartBeat, Subscribe, Version
from airy_trio.websocket.event_stream import (
    COMMENT,
    RETRY_LATER_MS,
    StreamRequest,
    event,
    named_event,
    retry,
    sharing,
    stream_head,
)
from airy_trio.websocket.frames import HEART_BEAT, close_frame, text_message
from airy_trio.websocket.request import LAST_RESPONSE, response, response_head

# The header line of the MESSAGE that completes the current state; an event stream has an event of its own after it.
_STATE_COMPLETE: Final = header("state", "complete", None)
# All event streams share one prefix: their bytes depend on nothing but the event. No MESSAGE begins with it.
STREAM_PREFIX: Final = b"id: "
# The time until a client reconnects is random, so that the clients of one server do not all reconnect at once.
RETRY_MS_MIN: Final = 1000
RETRY_MS_MAX: Final = 3000
# An event stream has one subscription; this is its number, as `Conversation` counts them.
_NUMBER: Final = 1
_COMPLETE: Final = b'{"state":"complete"}'
_CHALLENGE: Final = ("WWW-Authenticate", "Bearer")


class StompFraming(Connection):
    """STOMP, with each frame in a WebSocket message of its own. Sans-IO.

    ``has_headers``: an event can have further header lines. Without them, all clients that return to one position share
    the batches that they lack.
    """

    __slots__ = ()
    has_headers = True

    def connected(self) -> bytes:
        """Accept CONNECT; return the bytes of the answer."""
        return text_message(super().connected())

    def receipt(self, receipt_id: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """Encode the answer to a request that has taken effect. ``headers``: of that to a SUBSCRIBE (wire contract)."""
        return text_message(super().receipt(receipt_id, headers))

    def message(
        self, prefix: bytes, message_id: str, stored: StoredEvent, headers: bytes, *, completes_state: bool
    ) -> bytes:
        """Encode an event of a subscription. ``headers``: further header lines."""
        head = message_head(message_id, len(stored.body), truncated=stored.truncated)
        last = _STATE_COMPLETE if completes_state else b""
        return text_message(b"".join((prefix, head, headers, last, EOL, stored.body, NUL)))

    def heart_beat(self) -> bytes:
        """Encode a heart-beat, which is then written at once."""
        return HEART_BEAT

    def last_words(self, reason: DisconnectReason) -> bytes:
        """Encode the disconnect reason; empty if the client receives none. Call it once."""
        if reason.token is None:
            return b""
        return text_message(self.error(reason.token, reason.prose, reason.receipt_id, reason.headers))

    def end(self, reason: DisconnectReason) -> bytes | None:
        """Encode the Close frame, which the client answers; None if the reason has no close code."""
        return None if reason.close_code is None else close_frame(reason.close_code, reason.token or reason.name)


class EventStreamFraming:
    """Server-Sent Events: the response to a request that an admission has accepted. Sans-IO.

    ``StompFraming`` and ``Connection`` describe the methods, which are the same here.
    ``origin`` and ``returning``: see ``StreamRequest``. The request itself is not kept: it may be large.
    """

    __slots__ = ("_begun", "_origin", "_returning", "session")
    has_headers = False

    def __init__(self, session: str, *, origin: str | None, returning: bool) -> None:
        self.session = session
        self._origin = origin
        self._returning = returning
        self._begun = False  # whether the head of the stream was encoded

    def receive(self, data: bytes) -> NoReturn:
        """Refuse all input: the response lasts as long as the connection, so nothing may follow the request."""
        raise RemoteProtocolError(PROTOCOL_ERROR.token or "", "Nothing may follow a request for events.")

    def connected(self) -> bytes:
        """Return nothing: the subscription may still be refused by status."""
        return b""

    def message_prefix(self, request: Subscribe) -> bytes:
        return STREAM_PREFIX

    def receipt(self, receipt_id: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """Encode the first event. From then on the client can resume at its position."""
        facts = dict(headers)
        return self._head() + named_event("subscribed", _json(facts.items()), facts["position"])

    def message_ack(self, number: int, message_id: str) -> bytes:
        """Return nothing: no event is acknowledged."""
        return b""

    def message(
        self, prefix: bytes, message_id: str, stored: StoredEvent, headers: bytes, *, completes_state: bool
    ) -> bytes:
        return event(message_id, stored.body) + (named_event("state", _COMPLETE) if completes_state else b"")

    def heart_beat(self) -> bytes:
        """Encode a comment."""
        return self._head() + COMMENT

    def last_words(self, reason: DisconnectReason) -> bytes:
        """Encode the disconnect reason by the table at the top of this module."""
        if reason.token is None:
            return b""
        if not self._begun and reason.reconnect in (Reconnect.NO, Reconnect.WITH_CREDENTIALS):
            return self._refusal(reason)
        later = retry(RETRY_LATER_MS) if reason.reconnect is Reconnect.LATER else b""
        facts = ("token", reason.token), ("reason", reason.prose)
        return self._head() + later + named_event("disconnect", _json(facts))

    def end(self, reason: DisconnectReason) -> bytes | None:
        """Return no bytes, because the stream ends with the connection: the client has nothing to answer."""
        return b""

    def _head(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return stream_head(self._origin, random.randint(RETRY_MS_MIN, RETRY_MS_MAX))  # noqa: S311 - no secret

    def _refusal(self, reason: DisconnectReason) -> bytes:
        shared = sharing(self._origin)
        if reason.reconnect is Reconnect.NO and self._returning:
            return response_head(HTTPStatus.NO_CONTENT, *LAST_RESPONSE, *shared)
        status = HTTPStatus(int((reason.token or "")[:3]))
        challenge = (_CHALLENGE,) if status is HTTPStatus.UNAUTHORIZED else ()
        return response(status, f"{reason.token}: {reason.prose}", *challenge, *shared)


Framing = StompFraming | EventStreamFraming
"""How the bytes of one client are read and written."""


def requests_of(wanted: StreamRequest, heartbeat_ms: int) -> tuple[Connect, Subscribe]:
    """Return the CONNECT and SUBSCRIBE of a request for an event stream. ``heartbeat_ms``: of the server; 0: none.

    The client may be silent for any time. The operating system detects that it is gone.
    """
    heartbeat = HeartBeat(outgoing_s=heartbeat_ms / 1000 or None, incoming_s=float("inf"))
    subscribe = Subscribe(
        number=_NUMBER,
        destination=ROOT + wanted.path,
        last_event_id=wanted.last_event_id,
        replay=wanted.replay,
        receipt="",
    )
    return Connect(version=Version.V1_2, heartbeat=heartbeat), subscribe


def _json(pairs: Iterable[tuple[str, str]]) -> bytes:
    return json.dumps(dict(pairs), separators=(",", ":")).encode()
