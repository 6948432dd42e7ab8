"""Names of our own objects, and URLs in messages."""

from pathlib import Path

import pytest

from airy_trio.database import Names, quote_identifier, quote_text, shown, sqlite_path


def test_relative_paths_are_relative_to_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:///app.db") == tmp_path / "app.db"
    assert sqlite_path("sqlite:////srv/app.db") == Path("/srv/app.db")


def test_names_of_our_own_tables() -> None:
    postgres, sqlite = Names("postgresql", "airy_trio"), Names.of("sqlite:///x.db", "airy_trio")
    assert (postgres.bare("t"), postgres.quoted("t"), postgres.table_schema) == ("t", '"airy_trio"."t"', "airy_trio")
    assert (sqlite.bare("t"), sqlite.quoted("t"), sqlite.table_schema) == ("airy_trio_t", '"airy_trio_t"', None)
    assert quote_identifier('a"b') == '"a""b"'
    assert quote_text("a'b") == "'a''b'"


@pytest.mark.parametrize(
    "url", ["postgresql://u:SECRET@h:5432/db", "postgresql://u@h:5432/db?password=SECRET&sslmode=require"]
)
def test_url_is_shown_without_its_password(url: str) -> None:
    text = shown(url)
    assert "SECRET" not in text
    assert "h:5432/db" in text
