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
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final, NoReturn

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
    """Writes conversations; each write is a transaction. ``pause`` waits for so many seconds between two writes."""

    def __init__(self, path: str, pause: Callable[[float], None]) -> None:
        self._wait = pause
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._random = random.Random()  # noqa: S311 - not a secret

    def open(self) -> None:
        """Create the channels and the tags. Once for each database."""
        for id_, source in CHANNELS:
            self._execute("insert into channels values (?, ?, ?, true)", id_, source, f"{source}-account-1")
        for name, color in TAGS:
            self._execute("insert into tags values (?, ?, ?)", str(uuid.uuid4()), name, color)

    def talk(self) -> None:
        """Write one conversation from its first message to its last."""
        for least_s, most_s in self._conversation():
            self._pause(least_s, most_s)

    def chat(self, at_once: int) -> NoReturn:
        """Write several conversations at the same time, forever; a new one begins when one has ended."""
        talking = [self._conversation() for _ in range(at_once)]
        while True:
            number = self._random.randrange(at_once)
            pause = next(talking[number], None)
            if pause is None:
                talking[number] = self._conversation()
            else:
                self._pause(*pause)

    def _conversation(self) -> Iterator[tuple[float, float]]:
        """Write one conversation; yield the minimum and maximum pause, in seconds, before the next write."""
        conversation = f"conversation-{uuid.uuid4().hex[:6]}"
        channel, source = self._random.choice(CHANNELS)
        for key, value in (("displayName", self._random.choice(CONTACTS)), ("locale", self._random.choice(LOCALES))):
            self._describe("conversation", conversation, f"contact.{key}", value)
        for number, text in enumerate(self._random.choice(DIALOGUES)):
            from_contact = number % 2 == 0
            if from_contact:
                self._describe("conversation", conversation, "isUserTyping", "true", "bool")
                yield 0.3, 0.8
                self._describe("conversation", conversation, "isUserTyping", "false", "bool")
            id_ = self._say(conversation, channel, source, text, from_contact=from_contact)
            if not from_contact:
                yield from self._deliver(id_)
            self._describe("conversation", conversation, "unreadCount", str(int(from_contact)), "number")
            yield 0.2, 0.7
        tag = self._connection.execute("select id from tags order by random() limit 1").fetchone()[0]
        self._describe("conversation", conversation, f"tags.{tag}", "")
        if self._random.random() < 0.3:  # noqa: PLR2004 - a probability
            self._execute("update channels set connected = false where id = ?", channel)
            yield 0.5, 1.0
            self._execute("update channels set connected = true where id = ?", channel)

    def _deliver(self, id_: str) -> Iterator[tuple[float, float]]:
        """Deliver a message, at the first attempt or at the second."""
        yield 0.1, 0.3
        if self._random.random() < 0.15:  # noqa: PLR2004 - a probability
            self._execute("update messages set delivery_state = 'failed' where id = ?", id_)
            yield 0.6, 1.0
            self._execute("update messages set delivery_state = 'pending' where id = ?", id_)
            yield 0.1, 0.3
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

    def _pause(self, least_s: float, most_s: float) -> None:
        self._wait(self._random.uniform(least_s, most_s))


def main(path: str) -> NoReturn:
    """Write until the process that started this one has ended."""
    parent = os.getppid()

    def pause(seconds: float) -> None:
        time.sleep(seconds)
        if os.getppid() != parent:
            sys.exit()

    InboxApplication(path, pause).chat(AT_ONCE)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


if __name__ == "__main__":
    main(sys.argv[1])
