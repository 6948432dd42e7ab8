"""From a text or file to settings, or to the faults that the operator reads."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.capture.mapping import TablesOptions
from airy_trio.errors import SettingsError
from airy_trio.settings import FILE_BYTES_MAX, DatabaseSection, LoggingOptions, Settings, load, parse
from tests.settings.reading import DATABASE, URL, fault, faults, read

DEFAULTS = Settings(database=DatabaseSection(url=URL))


def test_only_the_database_must_be_named() -> None:
    assert read("") == DEFAULTS


def test_every_section_is_read() -> None:
    settings = read(
        """
        schema = "other"
        connect_timeout_s = 2
        [database.tables.messages]
        name = ["chat", "mess.ages"]
        columns = { conversation_id = "thread_id" }
        constants = { source = "chat" }
        values = { from_contact = { "0" = true, "1" = false } }
        where = "private = false"
        time_zone = "Europe/Berlin"
        [database.tables.tags]
        name = ""
        [changes]
        batch_rows_max = 7
        [events]
        deletes = true
        [log]
        store = "memory"
        retain_s = 0x10
        [replay]
        window_s = 1.5
        [listener]
        port = 0
        [admin]
        port = 0
        [logging]
        level = "debug"
        """
    )
    assert settings.database == DatabaseSection(url=URL, schema="other", connect_timeout_s=2, tables=settings.tables)
    assert settings.tables.messages.name == ["chat", "mess.ages"]
    assert settings.tables.messages.columns == {"conversation_id": "thread_id"}
    assert settings.tables.messages.constants == {"source": "chat"}
    assert settings.tables.messages.values == {"from_contact": {"0": True, "1": False}}
    assert settings.tables.messages.where == "private = false"
    assert settings.tables.messages.time_zone == "Europe/Berlin"
    assert settings.tables.tags.name == ""
    assert settings.tables.channels == TablesOptions().channels
    assert settings.changes.batch_rows_max == 7
    assert settings.events.deletes is True
    assert (settings.log.store, settings.log.retain_s) == ("memory", 16)
    assert settings.replay.window_s == 1.5
    assert settings.listener.port == 0
    assert (settings.admin.host, settings.admin.port) == ("127.0.0.1", 0)
    assert settings.logging == LoggingOptions(level="debug")


def test_texts_are_taken_from_the_environment() -> None:
    settings = parse(
        """
        [database]
        url = "postgresql://airy:${PASSWORD}@${HOST:-db}/airy"
        [database.tables.messages]
        name = "${SCHEMA}.messages"
        columns = { content = "${COLUMN:-body}" }
        """,
        {"PASSWORD": "hunter2", "SCHEMA": "chat"},
    )
    assert settings.database.url == "postgresql://airy:hunter2@db/airy"
    assert settings.tables.messages.name == "chat.messages"
    assert settings.tables.messages.columns == {"content": "body"}


def test_unset_variable_is_reported_with_its_setting() -> None:
    assert faults('[database]\nurl = "${DATABASE_URL}"') == ("database.url: not set in the environment: DATABASE_URL",)
    assert fault('[log]\nurl = "${A}${B}"') == "log.url: not set in the environment: A, B"
    assert fault('[database.tables.tags]\nname = ["a", "${X}"]') == (
        "database.tables.tags.name[1]: not set in the environment: X"
    )


def test_all_faults_are_reported_at_once() -> None:
    assert faults(
        """
        colour = "red"
        [database]
        url = "mysql://airy:hunter2@db/airy"
        schema = "Upper"
        migrate = "yes"
        [database.tables.messages]
        columns = { contents = "body" }
        where = "${WHERE}"
        [listener]
        prot = 8080
        port = 70000
        host = 5
        [logging]
        level = "loud"
        """
    ) == (
        "database.url: found a mysql:// URL, expected sqlite:///FILE or postgresql://USER@HOST/DATABASE",
        'database.schema: found string "Upper", expected a plain name: a-z, 0-9 and _, at most 41 characters',
        'database.migrate: found string "yes", expected true or false',
        "database.tables.messages.where: not set in the environment: WHERE",
        "listener.host: found integer 5, expected a string",
        "listener.port: found integer 70000, expected a number from 0 to 65535",
        "listener.prot: unknown setting; did you mean listener.port?",
        'logging.level: found string "loud", expected "debug" or "info" or "warning" or "error"',
        "colour: unknown setting; allowed here: database, changes, events, log, replay, listener, auth, admin, logging",
        (
            "database.tables.messages.columns.contents: no such field of messages; "
            "did you mean database.tables.messages.columns.content?"
        ),
    )


def test_an_empty_file_lacks_the_database() -> None:
    missing = (
        "database.url: missing, and it has no default; expected sqlite:///FILE or postgresql://USER@HOST/DATABASE",
    )
    assert faults("") == missing
    assert faults("[database]") == missing
    assert faults('[database]\nschema = "s"') == missing


@pytest.mark.parametrize(
    "text, line",
    [
        ("[loging]", "loging: unknown setting; did you mean logging"),
        ("[listener]\nhearbeat_ms = 5", "listener.hearbeat_ms: unknown setting; did you mean listener.heartbeat_ms"),
        ("[listener]\nlevel = 5", "listener.level: unknown setting; did you mean logging.level"),
        ("[events]\nurl = 5", "events.url: unknown setting; did you mean database.url, log.url"),
        ("[events]\nzzz = 5", "events.zzz: unknown setting; allowed here: deletes"),
        (
            "[database.tables.mesages]",
            "database.tables.mesages: unknown setting; did you mean database.tables.messages",
        ),
        (
            "[database.tables.tags]\nnme = 'x'",
            "database.tables.tags.nme: unknown setting; did you mean database.tables.tags.name",
        ),
        ("[messages]", "messages: unknown setting; did you mean database.tables.messages"),
        ("[tables.messages]", "tables: unknown setting; did you mean database.tables"),
        ('["database.tables"]', '"database.tables": unknown setting; did you mean database'),
    ],
)
def test_nearest_key_is_suggested(text: str, line: str) -> None:
    assert fault(text).startswith(line)


def test_database_must_be_a_table() -> None:
    assert faults("database = 'sqlite:///x.db'") == ("database: found string (not shown), expected a table",)


def test_fault_shows_the_reference_not_its_value() -> None:
    assert fault("[logging]\nlevel = '${LEVEL}'", {"LEVEL": "hunter2"}) == (
        'logging.level: found string "${LEVEL}", expected "debug" or "info" or "warning" or "error"'
    )


@pytest.mark.parametrize(
    "text, why",
    [
        ("a = ", "Invalid value (at end of document)"),
        ("a = 1\nb = [1,\n", "Invalid value (at end of document)"),
        ("a = 1\nb = = 2\n", "Invalid value (at line 2, column 5)"),
        ("a = 1\na = 2\n", "Cannot overwrite a value (at line 2, column 6)"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "1" * 5000, "a value that cannot be read"),
    ],
)
def test_toml_error_has_its_place(text: str, why: str) -> None:
    (only,) = faults(text)
    assert only.startswith("the settings: not TOML: ")
    assert why in only


def test_file_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(DATABASE + '[listener]\nhost = "${HOST}"\n')
    assert load(file, {"HOST": "::1"}).listener.host == "::1"


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xef\xbb\xbf" + DATABASE.replace("\n", "\r\n").encode())
    assert load(file, {}) == DEFAULTS


def refused(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert caught.value.__context__ is None
    (only,) = caught.value.faults
    assert only.isprintable()
    return only


def test_missing_file_is_reported(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.toml") == f"{tmp_path}/no.toml: there is no such file"
    assert refused(Path("no\nfile")) == r"'no\nfile': there is no such file"


def test_directory_is_reported(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: this is a directory, not a settings file"


def test_file_below_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert refused(tmp_path / "a" / "b") == f"{tmp_path}/a/b: the file cannot be read: Not a directory"


def test_overlong_file_name_is_reported(tmp_path: Path) -> None:
    assert refused(tmp_path / ("x" * 300)).endswith("x: the file cannot be read: File name too long")


def test_invalid_file_name_is_reported() -> None:
    assert refused(Path("a\0b")) == r"'a\x00b': not a file name"


def test_file_that_is_not_utf_8_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"# one\n# two\n# caf\xe9\n")
    assert refused(file) == f"{file}: not UTF-8 (at line 3)"


def test_file_that_is_not_toml_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("a = 1\nb\n")
    assert refused(file).startswith(f"{file}: not TOML: ")
    assert "(at line 2, column 2)" in refused(file)


def test_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    text = DATABASE.encode()
    file.write_bytes(text + b"#" * (FILE_BYTES_MAX - len(text)))
    assert load(file, {}) == DEFAULTS
    file.write_bytes(text + b"#" * (FILE_BYTES_MAX - len(text) + 1))
    assert refused(file) == f"{file}: larger than 1048576 bytes, not a settings file"


@given(st.text())
def test_any_text_is_settings_or_faults(text: str) -> None:
    try:
        parse(text, {})
    except SettingsError as error:
        reported = error.faults
    else:
        reported = ("none",)
    assert reported
    assert all(line.isprintable() for line in reported)
