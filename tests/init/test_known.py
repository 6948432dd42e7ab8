"""Known schemas are recognised in a real database, with the same mapping as the examples in ``config/``."""

from pathlib import Path

import pytest

from airy_trio.capture.mapping import TablesOptions
from airy_trio.init import Draft, draft
from airy_trio.settings import load
from tests.application import Application
from tests.init.schemas import create
from tests.pgbouncer import through

CONFIG = Path(__file__).parents[2] / "config"


def best(_question: str, _answers: object, best: str) -> str:
    raise AssertionError(best)


def drafted(application: Application) -> Draft:
    return draft(application.url, {}, best)


@pytest.mark.parametrize("name, words", [("airy", "Airy Core's records"), ("chatwoot", "Chatwoot's tables")])
def test_mapping_of_the_example(name: str, words: str, postgres_application: Application) -> None:
    create(postgres_application, name)
    found = drafted(postgres_application)
    example = load(CONFIG / f"{name}.toml", {"DATABASE_URL": postgres_application.url})
    assert found.found[0].endswith(f"recognised as {words}")
    assert found.settings.tables == example.tables
    assert found.settings.events == example.events
    assert found.warnings == []


def test_similar_tables_are_not_recognised(postgres_application: Application) -> None:
    postgres_application.execute(
        "create table messages (id int primary key, content text, inbox_id int, conversation_id int, message_type int, "
        "created_at timestamp, status int, sender_id int)"
    )
    found = draft(postgres_application.url, {}, lambda _question, _answers, best: best)
    assert found.found[0].endswith("tables: 1")
    assert found.settings.tables.messages.where == ""


def test_no_transaction_is_open_during_a_question(postgres_application: Application) -> None:
    create(postgres_application, "django_chat")
    postgres_application.execute("alter table chat_message add sent_by_customer boolean")  # a possible answer
    states: list[object] = []

    def ask(_question: str, _answers: object, best: str) -> str:
        query = "select string_agg(distinct state, ',') from pg_stat_activity where pid <> pg_backend_pid()"
        states.append(postgres_application.scalar(f"{query} and datname = current_database()"))
        return best

    draft(postgres_application.url, {}, ask)
    assert states == ["idle"]


def test_default_tables(any_application: Application) -> None:
    any_application.migrate()
    any_application.message(id="m7")
    found = drafted(any_application)
    assert found.found[0].endswith("tables: 4, recognised as airy-trio's default tables")
    assert found.settings.tables == TablesOptions()
    assert '"id":"m7"' in found.events[0]


def test_known_table_with_other_columns_is_left_out(any_application: Application) -> None:
    any_application.migrate()
    any_application.execute(
        "drop table tags", "create table tags (id integer primary key, title text)", "drop table channels"
    )
    found = drafted(any_application)
    assert found.settings.tables.tags.name == ""
    assert found.settings.tables.channels.name == ""
    assert found.settings.tables.messages.name is None


def test_pooler_is_reported(postgres_application: Application, pgbouncer: int) -> None:
    postgres_application.migrate()
    found = draft(through(postgres_application.url, pgbouncer), {}, best)
    [warning] = found.warnings
    assert warning.startswith("database.url: this goes through a pooler")
