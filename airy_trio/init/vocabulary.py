"""The words by which tables, columns and values are recognised: English names as applications choose them.

Names are compared in lower case and without underscores, so that ``sentAt``, ``sent_at`` and ``sentat`` are one. Of
several names the first is the best. Everything here is a guess: the settings file shows it and a person can change it.
Nothing else depends on it.
"""

import re
from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import Scalar
from airy_trio.init.catalogue import Family

NOUNS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "messages": (
        "message", "msg", "comment", "reply", "post", "chat", "sms", "email", "article", "note", "line", "todo",
        "task", "item", "entry", "event",
    ),
    "metadata": ("metadata", "metadatum", "attribute", "property", "custom_value", "field_value", "value", "meta"),
    "channels": ("channel", "inbox", "mailbox", "integration"),
    "tags": ("tag", "label"),
}  # fmt: skip
"""What the tables of a kind are called, in the singular."""

CONVERSATIONS: Final = (
    "conversation", "thread", "chat", "room", "ticket", "discussion", "dialog", "dialogue", "topic", "case",
    "session", "issue", "request", "group", "list", "project", "board", "post", "article",
)  # fmt: skip
CHANNELS: Final = NOUNS["channels"]
USERS: Final = (
    "sender", "author", "user", "contact", "customer", "agent", "member", "participant", "person", "poster", "actor",
    "creator", "owner", "profile", "account", "assignee",
)  # fmt: skip
"""What a message refers to: names of its columns, without ``id``, and of the tables that these refer to."""

NAMES: Final[Mapping[Kind, Mapping[str, tuple[str, ...]]]] = {
    "messages": {
        "content": (
            "content", "body", "text", "message", "msg", "message_text", "body_text", "text_body", "comment", "raw",
            "said", "cooked", "html", "body_html", "title", "note", "notes", "description", "subject", "summary",
            "name",
        ),
        "sent_at": (
            "sent_at", "sent", "timestamp", "created_at", "create_at", "created", "date_created", "created_date",
            "created_on", "creation_date", "posted_at", "date_sent", "inserted_at", "date_added", "added_at", "added",
            "received_at", "pub_date", "sent_on", "time", "date", "datetime", "at", "ts", "created_time",
            "updated_at", "update_at", "modified_at", "updated", "modified", "updated_on",
        ),
        "source": ("source", "platform", "provider", "channel_type", "origin", "via", "medium"),
        "sender_id": (
            "sender_id", "sender", "author_id", "author", "user_id", "user", "from_id", "from_user_id", "from_user",
            "from", "who", "created_by_id", "created_by", "creator_id", "owner_id", "username", "user_name",
            "nickname", "handle", "assignee_id",
        ),
    },
    "metadata": {
        "key": ("key", "name", "field", "field_name", "attribute", "attr", "meta_key", "property"),
        "value": ("value", "val", "meta_value", "field_value"),
        "updated_at": ("updated_at", "timestamp", "update_at", "modified_at", "updated_on", "updated", "modified"),
    },
    "channels": {
        "source": ("source", "channel_type", "type", "kind", "platform", "provider", "service"),
        "source_channel_id": (
            "source_channel_id", "external_id", "channel_id", "identifier", "address", "email_address", "email",
            "phone_number", "slug", "handle", "name", "display_name", "title",
        ),
    },
    "tags": {
        "name": ("name", "title", "label", "tag", "text", "value"),
        "color": ("color", "colour", "background_color", "hex", "color_code", "colour_code"),
    },
}  # fmt: skip
"""The columns of fields that neither refer to something (above) nor have a closed set of values (below)."""

FAMILIES: Final[Mapping[str, frozenset[Family]]] = {
    "content": frozenset({"text", "json", "other"}),
    "sent_at": frozenset({"time", "text", "integer", "number"}),
    "updated_at": frozenset({"time", "text", "integer", "number"}),
    "source": frozenset({"text"}),
    "sender_id": frozenset({"text", "integer", "uuid", "number", "other"}),
    "color": frozenset({"text"}),
    "name": frozenset({"text"}),
}
"""The types of columns that can hold a field; any, if it is not listed."""


@frozen
class Flag:
    """Columns with yes or no, by name, and what they mean."""

    names: tuple[str, ...]
    yes: Scalar
    no: Scalar


@frozen(kw_only=True)
class Words:
    """Columns with one of several words, by name, and what the words mean.

    ``relative``: words whose meaning depends on the other words of the column. A "user" is one of the company's own if
    there are customers too, and the customer if there are agents too.
    """

    names: tuple[str, ...]
    meanings: Mapping[str, Scalar]
    relative: frozenset[str] = field(default=frozenset())


def _meanings(*groups: tuple[Scalar, str]) -> Mapping[str, Scalar]:
    return {word: meaning for meaning, words in groups for word in words.split()}


CODED: Final[Mapping[str, tuple[Flag | Words, ...]]] = {
    "from_contact": (
        Flag(
            ("from_contact", "is_from_contact", "from_customer", "is_from_customer", "by_customer", "incoming",
             "is_incoming", "inbound", "is_inbound", "from_client", "from_visitor"),
            yes=True, no=False,
        ),
        Flag(
            ("outgoing", "is_outgoing", "outbound", "is_outbound", "from_me", "from_agent", "from_staff", "by_staff",
             "is_agent", "is_staff", "is_admin", "is_bot", "staff_reply", "is_staff_reply", "from_self", "from_admin"),
            yes=False, no=True,
        ),
        Words(
            names=("direction", "sender_type", "author_type", "sender_role", "author_role", "from_type", "user_type",
                   "created_by_type", "sender_kind", "role", "message_type", "sender", "type", "kind"),
            meanings=_meanings(
                (True, "in inbound incoming received customer client contact visitor guest requester enduser lead"),
                (False, "out outbound outgoing sent agent staff admin administrator operator support bot system"),
                (False, "assistant employee team representative tool"),
            ),
            relative=frozenset({"user"}),
        ),
    ),
    "delivery_state": (
        Words(
            names=("delivery_state", "delivery_status", "status", "state", "send_status", "message_status"),
            meanings=_meanings(
                ("delivered", "delivered sent read received seen ok success successful complete completed done"),
                ("delivered", "finished published posted closed resolved active"),
                ("pending", "pending queued sending draft scheduled new open todo inprogress processing waiting"),
                ("failed", "failed failure error bounced undelivered rejected canceled cancelled"),
            ),
        ),
        Flag(("delivered", "is_delivered", "sent", "is_sent", "done", "is_done", "completed", "is_completed",
              "complete", "finished", "checked", "is_checked"), yes="delivered", no="pending"),
        Flag(("failed", "has_failed", "is_failed"), yes="failed", no="delivered"),
    ),
    "connected": (
        Words(
            names=("connected", "connection_state", "connection_status", "status", "state"),
            meanings=_meanings(
                (True, "connected active enabled open online up live on"),
                (False, "disconnected inactive disabled closed offline down archived paused off"),
            ),
        ),
        Flag(("connected", "is_connected", "active", "is_active", "enabled", "is_enabled", "online"), yes=True,
             no=False),
        Flag(("disabled", "is_disabled", "archived", "is_archived", "deleted", "is_deleted"), yes=False, no=True),
    ),
    "value_type": (
        Words(
            names=("value_type", "type", "data_type", "field_type"),
            meanings=_meanings(
                ("text", "text string str varchar date datetime"),
                ("number", "number integer int float decimal"),
                ("bool", "bool boolean checkbox"),
                ("object", "object json hash"),
                ("array", "array list"),
                ("nullValue", "nullvalue null"),
            ),
        ),
    ),
}  # fmt: skip
"""The fields with a closed set of values."""

SUBJECTS: Final = _meanings(
    ("conversation", " ".join(CONVERSATIONS)),
    ("message", "message comment reply note"),
    ("channel", " ".join(CHANNELS)),
)
"""What the subject of metadata may be called: the class of a row that metadata is about."""

HIDDEN: Final = (
    "private", "is_private", "internal", "is_internal", "internal_note", "is_internal_note", "private_note",
    "private_notes", "is_note", "deleted", "is_deleted", "removed", "is_removed", "discarded", "hidden", "is_hidden",
    "draft", "is_draft",
)  # fmt: skip
"""Yes or no: messages that clients should not receive."""
SHOWN: Final = ("public", "is_public", "visible", "is_visible", "published", "is_published", "approved", "is_approved")
"""Yes or no: messages that clients should receive."""
DELETED_AT: Final = ("deleted_at", "removed_at", "discarded_at", "archived_at", "delete_at")
"""Times: of messages that clients should no longer see."""


def squashed(name: str) -> str:
    """Return a name in the form in which names are compared."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def singular(name: str) -> str:
    """Return the name of a table in the singular, squashed."""
    text = squashed(name)
    if text.endswith("ies"):
        return text[:-3] + "y"
    if text.endswith(("xes", "ches", "shes", "sses")):
        return text[:-2]
    return text[:-1] if text.endswith("s") and not text.endswith(("ss", "us", "sms", "news")) else text


def without_id(name: str) -> str:
    """Return the squashed name of a column that refers to something, without its ``id``."""
    return re.sub(r"(uuid|guid|id)$", "", squashed(name))
