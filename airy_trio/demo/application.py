"""The demo's application: an inbox that knows nothing of airy-trio and writes its conversations into its database.

It ends when it is told to, or when the process that started it is gone.
"""

import json
import os
import random
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NoReturn

CHANNELS: Final = (("web-shop", "chatplugin"), ("facebook-page", "facebook"), ("sms-line", "twilio.sms"))
TAGS: Final = (("urgent", "red"), ("order", "blue"), ("praise", "green"))
CONTACTS: Final = ("Grace", "Amara", "Jonas", "Mei", "Tomás", "Ines")
DIALOGUES: Final = (
    (
        "Hello! Is the blue rain jacket back in stock?",
        "Hi! It is, in S and L. Shall I put one aside?",
        "L please 🙏",
        "Done, it waits for you until Friday.",
    ),
    (
        "My parcel says “delivered” but there is nothing here",
        "Sorry to hear that. May I have the order number?",
        "40-1187",
        "Thank you: it is with your neighbour at number 9.",
        "Found it, thanks!",
    ),
    (
        "Do you ship to Portugal?",
        "We do, in three to five days, for 6 €.",
        "Perfeito",
    ),
    (
        "The app logs me out again and again",
        "Which version do you see under Settings → About?",
        "2.4.1",
        "2.4.2 mends this, it came out this morning.",
        "Works. Five stars ⭐",
    ),
)


class Inbox:
    """Conversations one after the other, each write committed at once. ``pause`` takes seconds, between two writes."""

    def __init__(self, path: str, pause: Callable[[float], None]) -> None:
        self._wait = pause
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._random = random.Random()  # noqa: S311 - who writes next is no secret

    def open(self) -> None:
        """Connect the channels and make the tags."""
        for id_, source in CHANNELS:
            self._execute("insert into channels values (?, ?, ?, true)", id_, source, f"{source}-account-1")
        for name, color in TAGS:
            self._execute("insert into tags values (?, ?, ?)", str(uuid.uuid4()), name, color)

    def talk(self) -> None:
        """One conversation from its first message to its end."""
        conversation = f"conversation-{uuid.uuid4().hex[:6]}"
        channel, source = self._random.choice(CHANNELS)
        self._describe("conversation", conversation, "contact.displayName", self._random.choice(CONTACTS))
        for number, text in enumerate(self._random.choice(DIALOGUES)):
            from_contact = number % 2 == 0
            if from_contact:
                self._describe("conversation", conversation, "isUserTyping", "true", "bool")
                self._pause(0.3, 0.8)
                self._describe("conversation", conversation, "isUserTyping", "false", "bool")
            self._say(conversation, channel, source, text, from_contact=from_contact)
            self._pause(0.2, 0.7)
        tag = self._connection.execute("select id from tags order by random() limit 1").fetchone()[0]
        self._describe("conversation", conversation, f"tags.{tag}", "")
        if self._random.random() < 0.3:  # noqa: PLR2004 - now and then
            self._execute("update channels set connected = false where id = ?", channel)
            self._pause(0.5, 1.0)
            self._execute("update channels set connected = true where id = ?", channel)

    def _say(self, conversation: str, channel: str, source: str, text: str, *, from_contact: bool) -> None:
        id_ = str(uuid.uuid4())
        state = "delivered" if from_contact else "pending"
        content = json.dumps({"text": text}, ensure_ascii=False)
        sender = f"{source}:{conversation}" if from_contact else "agent:1"
        self._execute(
            "insert into messages values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(id_, conversation, channel, content, state, from_contact, _now(), source, sender),
        )
        if not from_contact:
            self._pause(0.1, 0.3)
            self._execute("update messages set delivery_state = 'delivered' where id = ?", id_)

    def _describe(self, subject: str, identifier: str, key: str, value: str, value_type: str = "text") -> None:
        self._execute(
            "insert into metadata values (?, ?, ?, ?, ?, ?) on conflict (subject, identifier, key) "
            "do update set value = excluded.value, updated_at = excluded.updated_at",
            *(subject, identifier, key, value, value_type, _now()),
        )

    def _execute(self, statement: str, *parameters: str | bool) -> None:
        self._connection.execute(statement, parameters)

    def _pause(self, least_s: float, most_s: float) -> None:
        self._wait(self._random.uniform(least_s, most_s))


def main(path: str) -> NoReturn:
    """Talk until the process that started this one is gone."""
    parent = os.getppid()

    def pause(seconds: float) -> None:
        time.sleep(seconds)
        if os.getppid() != parent:
            sys.exit()

    inbox = Inbox(path, pause)
    inbox.open()
    while True:
        inbox.talk()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


if __name__ == "__main__":
    main(sys.argv[1])
