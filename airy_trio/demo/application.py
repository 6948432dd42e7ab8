"""The demo's application: an inbox that writes conversations into its database, independent of airy-trio.

It ends on a signal, or when the process that started it has ended.
"""

import json
import os
import random
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

CHANNELS: Final = (
    ("web-shop", "chatplugin"),
    ("facebook-page", "facebook"),
    ("sms-line", "twilio.sms"),
    ("whatsapp-line", "twilio.whatsapp"),
)
TAGS: Final = (("urgent", "red"), ("order", "blue"), ("praise", "green"), ("refund", "purple"))
CONTACTS: Final = ("Grace", "Amara", "Jonas", "Mei", "Tomás", "Ines")
LOCALES: Final = ("en-GB", "de-DE", "pt-PT", "zh-CN")
AT_ONCE: Final = 4
"""How many conversations take place at the same time."""
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


class InboxApplication:
    """Writes conversations; each write is a transaction."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._random = random.Random()  # noqa: S311 - not a secret

    def open(self) -> None:
        """Create the channels and the tags. Once for each database."""
        for id_, source in CHANNELS:
            self._execute("insert into channels values (?, ?, ?, true)", id_, source, f"{source}-account-1")
        for name, color in TAGS:
            self._execute("insert into tags values (?, ?, ?)", str(uuid.uuid4()), name, color)

    def conversation(self) -> Iterator[float]:
        """Write one conversation from its first message to its last. Yield each pause between writes, in seconds."""
        conversation = f"conversation-{uuid.uuid4().hex[:6]}"
        channel, source = self._random.choice(CHANNELS)
        for key, value in (("displayName", self._random.choice(CONTACTS)), ("locale", self._random.choice(LOCALES))):
            self._describe("conversation", conversation, f"contact.{key}", value)
        for number, text in enumerate(self._random.choice(DIALOGUES)):
            from_contact = number % 2 == 0
            if from_contact:
                self._describe("conversation", conversation, "isUserTyping", "true", "bool")
                yield self._random.uniform(0.3, 0.8)
                self._describe("conversation", conversation, "isUserTyping", "false", "bool")
            id_ = self._say(conversation, channel, source, text, from_contact=from_contact)
            if not from_contact:
                yield from self._deliver(id_)
            self._describe("conversation", conversation, "unreadCount", str(int(from_contact)), "number")
            yield self._random.uniform(0.2, 0.7)
        tag = self._connection.execute("select id from tags order by random() limit 1").fetchone()[0]
        self._describe("conversation", conversation, f"tags.{tag}", "")
        if self._random.random() < 0.3:  # noqa: PLR2004 - a probability
            self._execute("update channels set connected = false where id = ?", channel)
            yield self._random.uniform(0.5, 1.0)
            self._execute("update channels set connected = true where id = ?", channel)

    def _deliver(self, id_: str) -> Iterator[float]:
        """Deliver a message, at the first attempt or at the second."""
        yield self._random.uniform(0.1, 0.3)
        if self._random.random() < 0.15:  # noqa: PLR2004 - a probability
            self._execute("update messages set delivery_state = 'failed' where id = ?", id_)
            yield self._random.uniform(0.6, 1.0)
            self._execute("update messages set delivery_state = 'pending' where id = ?", id_)
            yield self._random.uniform(0.1, 0.3)
        self._execute("update messages set delivery_state = 'delivered' where id = ?", id_)

    def _say(self, conversation: str, channel: str, source: str, text: str, *, from_contact: bool) -> str:
        id_ = str(uuid.uuid4())
        state = "delivered" if from_contact else "pending"
        content = json.dumps({"text": text}, ensure_ascii=False)
        sender = f"{source}:{conversation}" if from_contact else "agent:1"
        self._execute(
            "insert into messages values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(id_, conversation, channel, content, state, from_contact, _now(), source, sender),
        )
        return id_

    def _describe(self, subject: str, identifier: str, key: str, value: str, value_type: str = "text") -> None:
        self._execute(
            "insert into metadata values (?, ?, ?, ?, ?, ?) on conflict (subject, identifier, key) "
            "do update set value = excluded.value, updated_at = excluded.updated_at",
            *(subject, identifier, key, value, value_type, _now()),
        )

    def _execute(self, statement: str, *parameters: str | bool) -> None:
        self._connection.execute(statement, parameters)


def main(path: str) -> None:
    """Write several conversations at the same time, until the process that started this one has ended."""
    parent, inbox = os.getppid(), InboxApplication(path)
    conversations = [inbox.conversation() for _ in range(AT_ONCE)]
    while os.getppid() == parent:
        number = random.randrange(AT_ONCE)  # noqa: S311 - not a secret
        pause_s = next(conversations[number], None)
        if pause_s is None:
            conversations[number] = inbox.conversation()
        else:
            time.sleep(pause_s)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


if __name__ == "__main__":
    main(sys.argv[1])
