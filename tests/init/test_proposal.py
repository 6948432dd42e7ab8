"""The tables and columns proposed for schemas of several applications, from names, types and some rows."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest

from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import FIELDS, KINDS
from airy_trio.init import text_of
from airy_trio.init.catalogue import Family, FoundColumn, FoundTable, Row
from airy_trio.init.proposal import Proposal, Proposals, propose
from airy_trio.init.vocabulary import CODED, NAMES, NOUNS, singular

FAMILIES = get_args(Family)


def table(name: str, columns: str, *, key: str | None = "id") -> FoundTable:
    """Return a table. ``columns``: ``NAME`` or ``NAME:FAMILY`` (default: integer). ``>TABLE`` is a foreign key."""
    found: dict[str, FoundColumn] = {}
    for word in columns.split():
        words, _, target = word.partition(">")
        column, _, family = words.partition(":")
        assert not family or family in FAMILIES
        bits = ("true", "false") if family == "flag" else ("1", "0")
        found[column] = FoundColumn(name=column, family=family or "integer", bits=bits, target=target or None)  # type: ignore[arg-type]  # asserted
    return FoundTable(name=name, columns=found, key=key)


def proposed(
    *tables: FoundTable, rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, answers: Sequence[str] = ()
) -> tuple[Proposals, list[str]]:
    """Return the proposals and the questions. ``rows``: by table; values that are not given are texts."""
    questions: list[str] = []

    def ask(question: str, choices: Sequence[str], best: str) -> str:
        assert best in choices
        questions.append(question)
        answer = answers[len(questions) - 1] if len(questions) <= len(answers) else best
        assert answer in choices
        return answer

    def sample(wanted: FoundTable) -> Sequence[Row]:
        given = (rows or {}).get(wanted.name, ())
        return [{name: row.get(name, "1714557600000") for name in wanted.columns} for row in given]

    return propose(tables, sample, "app", ask), questions


def columns_of(proposal: Proposal) -> dict[str, object]:
    """Return the column of each field, or its constant in a tuple."""
    return {
        name: source.column if source.column is not None else (source.constant,)
        for name, source in proposal.sources.items()
    }


def test_no_question_has_none_as_its_only_answer() -> None:
    found, questions = proposed(table("todos", "id list:text title:text created_at:time"))
    assert questions == []
    assert columns_of(found["messages"])["from_contact"] == (True,)


def test_channels_to_which_messages_do_not_refer_are_reported() -> None:
    """The channel of such messages is a constant, which is the id of no row of this table."""
    messages = "id body:text conversation_id>conversations created_at:time"
    inboxes = table("inboxes", "id name:text")
    for referring, is_reported in ((messages, True), (f"{messages} inbox_id>inboxes", False)):
        found, _ = proposed(table("messages", referring), inboxes)
        assert found["channels"].table is inboxes
        assert ("messages do not refer to it" in found["channels"].why) == is_reported


def test_names_without_underscores_and_a_channel_that_is_the_conversation() -> None:
    found, _ = proposed(
        table("posts", "id:text createat deleteat userid:text channelid:text rootid:text message:text type:text"),
        table("channels", "id:text type:text name:text displayname:text"),
        table("users", "id:text username:text email:text createat"),
        rows={"posts": [{"deleteat": "0"}]},
    )
    assert columns_of(found["messages"]) == {
        "id": "id", "conversation_id": "channelid", "channel_id": "channelid", "content": "message",
        "delivery_state": ("delivered",), "from_contact": (True,), "sent_at": "createat", "source": ("app",),
        "sender_id": "userid",
    }  # fmt: skip
    assert found["messages"].where == 'coalesce("deleteat", 0) = 0'
    assert found["channels"].table is not None
    assert columns_of(found["channels"])["source_channel_id"] == "name"
    assert found["tags"].table is None


def test_words_of_a_column_become_values() -> None:
    sms = table("sms", "sid:text direction:text status:text body:text from:text date_sent:time", key="sid")
    found, questions = proposed(
        sms,
        rows={
            "sms": [{"direction": "inbound", "status": "received"}, {"direction": "outbound-api", "status": "queued"}]
        },
    )
    assert columns_of(found["messages"])["from_contact"] == (True,)  # one word is unknown
    assert found["messages"].sources["delivery_state"].values == {"received": "delivered", "queued": "pending"}
    assert "which column is its from_contact" in questions[-1]
    found, _ = proposed(sms, rows={"sms": [{"direction": "inbound"}, {"direction": "Outbound"}]})
    assert found["messages"].sources["from_contact"].values == {"inbound": True, "Outbound": False}


@pytest.mark.parametrize("read, sent", [("read", "sent"), ("READ", "SENT"), ("Read", "Sent")])
def test_word_that_no_row_has_yet_is_translated_too(read: str, sent: str) -> None:
    message = table("messages", "id conversation_id status:text body:text created_at:time")
    found, _ = proposed(message, rows={"messages": [{"status": read}]})
    source = found["messages"].sources["delivery_state"]
    assert source.values == {read: "delivered"}
    assert source.unseen[sent] == "delivered"
    assert read not in source.unseen
    assert f'"{sent}" = "delivered"' in text_of("sqlite:///app.db", found)


def test_no_word_is_guessed_for_words_in_different_styles() -> None:
    message = table("messages", "id conversation_id status:text body:text created_at:time")
    found, _ = proposed(message, rows={"messages": [{"status": "read"}, {"status": "Sent"}]})
    assert found["messages"].sources["delivery_state"].unseen == {}


@pytest.mark.parametrize(
    "words, meaning", [(("User", "Customer"), False), (("user", "assistant"), True), (("user",), None)]
)
def test_a_user_is_the_opposite_of_the_others(words: Sequence[str], meaning: bool | None) -> None:
    message = table("messages", "id conversation_id role:text body:text created_at:time")
    found, _ = proposed(message, rows={"messages": [{"role": word} for word in words]})
    source = found["messages"].sources["from_contact"]
    assert source.values.get(words[0]) is meaning


@pytest.mark.parametrize(
    "column, where",
    [
        ("internal:flag", '"internal" is not true'),
        ("internal", 'coalesce("internal", 0) = 0'),
        ("public:flag", '"public" is not false'),
        ("deleted_at:time", '"deleted_at" is null'),
        ("private:text", ""),
    ],
)
def test_what_clients_should_not_see_is_left_out(column: str, where: str) -> None:
    found, _ = proposed(table("comments", f"id ticket_id body:text author_id created_at:time {column}"))
    assert found["messages"].where == where


def test_negative_flag_is_turned_round() -> None:
    found, _ = proposed(table("replies", "id ticket_id text:text is_staff:flag created_at:time"))
    assert found["messages"].sources["from_contact"].values == {"true": False, "false": True}


def test_column_with_null_is_not_proposed_for_a_required_field() -> None:
    found, _ = proposed(
        table("chat_messages", "id chat_channel_id thread_id user_id message:text sent_at:time created_at:time"),
        rows={"chat_messages": [{"thread_id": None, "sent_at": None}]},
    )
    assert columns_of(found["messages"])["conversation_id"] == "chat_channel_id"
    assert columns_of(found["messages"])["sent_at"] == "created_at"


@pytest.mark.parametrize("time", ["1714557600", "1714557600000000"])
def test_time_in_seconds_or_microseconds_is_not_taken(time: str) -> None:
    found, questions = proposed(
        table("comment", "id issue_id poster_id content:text created_at"),
        rows={"comment": [{"created_at": time}]},
    )
    assert columns_of(found["messages"])["sent_at"] == (0,)
    assert any("which column is its sent_at" in question for question in questions)


def test_polymorphic_metadata() -> None:
    found, _ = proposed(
        table("messages", "id conversation_id body:text user_id created_at:time"),
        table("properties", "id owner_type:text owner_id name:text value:text"),
        rows={"properties": [{"owner_type": "Conversation"}, {"owner_type": "Message"}]},
    )
    metadata = found["metadata"]
    assert columns_of(metadata) == {"subject": "owner_type", "identifier": "owner_id", "key": "name", "value": "value"}
    assert metadata.sources["subject"].values == {"Conversation": "conversation", "Message": "message"}
    assert metadata.sources["subject"].unseen["Channel"] == "channel"
    assert metadata.where == ""


def test_metadata_about_other_classes_is_left_out() -> None:
    found, _ = proposed(
        table("messages", "id conversation_id body:text user_id created_at:time"),
        table("notes", "id Notable_type:text Notable_id name:text value:text"),
        rows={"notes": [{"Notable_type": "Conversation"}, {"Notable_type": "Contact"}, {"Notable_type": "Message"}]},
    )
    assert found["metadata"].sources["subject"].values == {"Conversation": "conversation", "Message": "message"}
    assert found["metadata"].where == """"Notable_type" in ('Conversation', 'Message')"""
    assert "Add others that you need.\nwhere =" in text_of("sqlite:///a.db", found)


def test_metadata_of_the_parent_of_messages() -> None:
    found, _ = proposed(
        table("posts", "id topic_id raw:text user_id created_at:time"),
        table("topic_custom_fields", "id topic_id name:text value:text"),
        table("preferences", "id user_id name:text value:text"),
    )
    assert found["metadata"].table is not None
    assert found["metadata"].table.name == "topic_custom_fields"
    assert columns_of(found["metadata"])["subject"] == ("conversation",)


@pytest.mark.parametrize(
    "tables",
    [
        [table("products", "id name:text description:text price:number created_at:time")],
        [table("customers", "id name:text email:text created_at:time"), table("orders", "id customer_id total:number")],
        [table("messages", "id conversation_id body:text created_at:time", key=None)],
        [],
    ],
    ids=["products", "orders", "no key", "no tables"],
)
def test_nothing_is_proposed_for_other_tables(tables: Sequence[FoundTable]) -> None:
    found, questions = proposed(*tables)
    assert {kind: proposal.table for kind, proposal in found.items()} == dict.fromkeys(found)
    assert questions == []


@pytest.mark.parametrize("answer, wanted", [("posts", "posts"), ("none", None)])
def test_close_tables_are_asked_for(answer: str, wanted: str | None) -> None:
    found, questions = proposed(
        table("chat_messages", "id thread_id user_id message:text created_at:time"),
        table("posts", "id topic_id user_id raw:text created_at:time"),
        answers=[answer],
    )
    assert questions[0] == "which table has the messages"
    chosen = found["messages"].table
    assert (None if chosen is None else chosen.name) == wanted


def test_chosen_column_is_used_with_its_words() -> None:
    found, _ = proposed(
        table("messages", "id conversation_id body:text created_at:time who_wrote:text"),
        rows={"messages": [{"who_wrote": "agent"}, {"who_wrote": "customer"}]},
        answers=["who_wrote"],
    )
    assert found["messages"].sources["from_contact"].values == {"agent": False, "customer": True}


@pytest.mark.parametrize(
    "family, body, form", [("text", "Hi", "text"), ("text", '{"text": "Hi"}', "auto"), ("json", '"Hi"', "auto")]
)
def test_text_stays_text_unless_the_column_has_json(family: str, body: str, form: str) -> None:
    found, _ = proposed(
        table("messages", f"id conversation_id body:{family} created_at:time"), rows={"messages": [{"body": body}]}
    )
    assert found["messages"].content == form


def test_sender_with_roles_is_no_name() -> None:
    found, _ = proposed(
        table("messages", "id conversation_id body:text created_at:time sender:text"),
        rows={"messages": [{"sender": "agent"}, {"sender": "customer"}]},
    )
    assert columns_of(found["messages"])["from_contact"] == "sender"
    assert columns_of(found["messages"])["sender_id"] == ("airy-core-anonymous",)


def test_sender_is_found_by_the_table_that_it_refers_to() -> None:
    found, _ = proposed(table("messages", "id conversation_id body:text created_at:time written>members"))
    assert columns_of(found["messages"])["sender_id"] == "written"


def test_metadata_of_a_message_by_its_foreign_key() -> None:
    found, _ = proposed(
        table("comments", "id ticket_id body:text user_id created_at:time"),
        table("attributes", "id about>comments type:text name:text value:text"),
        rows={"attributes": [{"type": "Comment"}]},  # a class, but not of what "about" refers to
    )
    assert columns_of(found["metadata"]) == {
        "subject": ("message",), "identifier": "about", "key": "name", "value": "value",
    }  # fmt: skip


@pytest.mark.parametrize(
    "plural, one",
    [("replies", "reply"), ("inboxes", "inbox"), ("addresses", "address"), ("cases", "case"), ("status", "status"),
     ("ChatMessages", "chatmessage"), ("sms", "sms"), ("news", "news")],
)  # fmt: skip
def test_singular(plural: str, one: str) -> None:
    assert singular(plural) == one


def test_tags_need_their_name() -> None:
    tables = [
        table("taggings", "id tag_id name:text"),
        table("todo_tags", "id tag_id todo_id"),
        table("labels", "id title:text"),
    ]
    found, _ = proposed(*tables)
    tags: Kind = "tags"
    assert found[tags].table is tables[-1]
    assert columns_of(found[tags]) == {"id": "id", "name": "title", "color": ("tag-blue",)}


def test_words_for_every_kind_and_no_other_field() -> None:
    assert set(NOUNS) == set(NAMES) == set(KINDS)
    fields = {field.name for kind in KINDS for field in FIELDS[kind]}
    assert {name for names in NAMES.values() for name in names} | set(CODED) <= fields
