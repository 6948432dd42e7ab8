"""Every bound: the value at the bound is accepted, the next one beyond is refused."""

import json

import pytest

from airy_trio.capture.mapping import KINDS
from airy_trio.settings import Settings, parse
from airy_trio.settings.reader import options_of
from tests.settings.reading import URL, fault, faults, read

POSTGRES = "postgresql://airy:hunter2@db:5432/airy"

NUMBERS = [
    # setting, values at the bound, values beyond it
    ("database.connect_timeout_s", ["0.001", "1"], ["0", "-1", "0.0"]),
    ("changes.batch_rows_max", ["1", "100000"], ["0", "100001"]),
    ("log.retain_s", ["1", "1.5"], ["0", "0.99"]),
    ("log.retain_events", ["1"], ["0", "-5"]),
    ("log.retain_durables_s", ["86400"], ["0", "0.99"]),  # with retain_s: see test_places
    ("log.tail_events", ["1"], ["0"]),
    ("log.tail_bytes", ["1"], ["0"]),
    ("replay.window_s", ["0", "0.5"], ["-1", "-0.5"]),
    ("replay.events_max", ["0", "1"], ["-1"]),
    ("listener.port", ["0", "65535"], ["-1", "65536"]),
    ("listener.subscriptions_max", ["1"], ["0"]),
    ("listener.durables_per_user_max", ["1"], ["0"]),
    ("listener.connect_timeout_s", ["0.001", "1"], ["0", "-1"]),
    ("listener.send_timeout_s", ["0.001", "1"], ["0", "-1"]),
    ("listener.away_max_s", ["0", "0.5"], ["-1", "-0.5"]),
    ("listener.heartbeat_ms", ["0", "500"], ["-1", "1", "499"]),
    ("listener.frame_bytes_max", ["4096"], ["4095"]),
    ("listener.message_bytes_max", ["1024"], ["1023"]),
    ("listener.connections_max", ["1"], ["0", "-1"]),
    ("listener.connections_per_address_max", ["1"], ["0", "-1"]),
    ("listener.subscriptions_per_address_max", ["0", "1"], ["-1"]),
    ("listener.drain_s", ["0", "0.5"], ["-1", "-0.5"]),
    ("listener.workers", ["1", "256"], ["0", "257"]),
    ("changes.overlap_s", ["5"], ["0", "0.09", "86401"]),  # other values need another capture: test_places
    ("admin.port", ["0", "65535"], ["-1", "65536"]),
    ("admin.lag_max_s", ["0.001", "1"], ["0", "-1"]),
]
TEXTS = [
    ("database.schema", ["a", "_", "airy_trio", "a" + "0" * 40], ["", "0a", "A", "a-b", "a.b", "a" + "0" * 41, "ä"]),
    ("listener.host", ["::1", "0.0.0.0", "localhost"], ["", " ", "a b"]),  # noqa: S104 - a value, nothing listens
    ("admin.host", ["::1", "127.0.0.2", "localhost"], ["", " ", "a b"]),  # others need a token: test_sections
    ("admin.websocket_url", ["", "wss://airy.example/ws", "ws://[::1]:8080/"], ["airy.example", "a b", "/ws"]),
    ("listener.path", ["/", "/ws.communication", "/a/b"], ["", "ws", "a/"]),
    ("listener.sse_path", ["", "/events", "/a/b"], ["/", "events", "/a/", "/a//b", "/a b"]),
    ("listener.tls_certificate", [""], ["-----BEGIN CERTIFICATE-----"]),
    ("auth.mode", ["none"], ["", "None", "JWT"]),
    # Other names need mode = "jwt": test_credentials.
    ("auth.jwt_channels_claim", ["airy_channels"], [""]),
    ("auth.jwt_destinations_claim", ["airy_destinations"], [""]),
    ("logging.level", ["debug", "info", "warning", "error"], ["", "INFO", "critical"]),
    ("logging.format", ["auto", "console", "json"], ["", "xml"]),
    ("changes.capture", ["triggers", "updated_at"], ["", "wal"]),
    ("database.tables.messages.content", ["auto", "text", "json"], ["", "Text", "binary"]),
    ("log.store", ["memory", "sql", "acme.events-2"], ["", "Redis", "a b", "a" * 42]),
    *(
        (f"database.tables.{kind}.time_zone", ["UTC", "Europe/Berlin"], ["", "Europe", "Mars/Base", "../UTC", "/etc"])
        for kind in KINDS
    ),
]
ANY = {
    "database.url", "database.direct_url", "database.migrate", "events.deletes", "log.url", "log.keep_current",
    "auth.tokens", "listener.hosts", "listener.allowed_origins", "listener.trusted_proxies",
    "listener.tls_key",
    "admin.token", "admin.others",
    "auth.jwt_key", "auth.jwt_algorithms", "auth.jwt_audience", "auth.jwt_issuer", "auth.jwt_require_exp",
    "auth.jwt_leeway_s", "auth.jwt_require_grants", "auth.cookie",
    *(
        f"database.tables.{kind}.{option}"
        for kind in KINDS
        for option in ("name", "columns", "constants", "values", "where")
    ),
}  # fmt: skip
"""Settings with tests of their own, or without a bound."""


def written(setting: str, value: str) -> str:
    section, _, key = setting.rpartition(".")
    header = "" if section == "database" else f"[{section}]\n"
    return f"{header}{key} = {value}\n"


def value_of(settings: object, setting: str) -> object:
    value = settings
    for part in setting.removeprefix("database.tables").removeprefix(".").split("."):
        value = getattr(getattr(value, "tables", value) if setting.startswith("database.tables") else value, part)
    return value


def test_every_setting_has_a_test_of_its_bounds() -> None:
    sections = {other[:-1] for other in options_of(Settings)}
    every = {".".join(map(str, path)) for path in options_of(Settings) if path not in sections}
    assert every == {setting for setting, _, _ in (*NUMBERS, *TEXTS)} | ANY


@pytest.mark.parametrize("setting, good, bad", NUMBERS)
def test_bounds_of_a_number(setting: str, good: list[str], bad: list[str]) -> None:
    for value in good:
        assert value_of(read(written(setting, value)), setting) == float(value)
    for value in bad:
        kind = "number" if "." in value else "integer"
        assert fault(written(setting, value)).startswith(f"{setting}: found {kind} {value}, expected ")


@pytest.mark.parametrize("setting, good, bad", TEXTS)
def test_allowed_strings(setting: str, good: list[str], bad: list[str]) -> None:
    for value in good:
        assert value_of(read(written(setting, f'"{value}"')), setting) == value
    for value in bad:
        assert fault(written(setting, f'"{value}"')).startswith(f'{setting}: found string "{value}", expected ')


@pytest.mark.parametrize("types", [[], ["message.updated"], ["tag.updated", "metadata.updated", "channel.updated"]])
def test_types_that_have_a_state_can_be_kept(types: list[str]) -> None:
    assert read(written("log.keep_current", json.dumps(types))).log.keep_current == types


@pytest.mark.parametrize("types", [["message.deleted"], ["tag.updated", "tags"], [1]])
def test_other_types_cannot_be_kept(types: list[object]) -> None:
    assert fault(written("log.keep_current", json.dumps(types))).startswith("log.keep_current")


def test_types_that_are_kept_are_a_list() -> None:
    assert fault(written("log.keep_current", '"tag.updated"')).startswith("log.keep_current: found string")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///a.db",
        "sqlite:////var/lib/a.db",
        "sqlite+pysqlite:///a.db",
        "sqlite:///a b.db",
        "postgresql://h/d",
        "postgresql+psycopg://u:p@h:5432/d",
        "postgresql://u:p@h:1/d",
        "postgresql://u:p@h:65535/d",
        "postgresql:///d?host=/run/postgresql",
        "postgresql://u:p%40ss@[::1]/d?sslmode=require",
    ],
)
def test_supported_database_urls(url: str) -> None:
    assert read(f'[log]\nurl = "{url}"').log.url == url
    (missing,) = faults(f'[database]\nurl = "{url}"\n[x]')
    assert missing.startswith("x: unknown")


def test_postgres_scheme_is_accepted() -> None:
    text = '[database]\nurl = "postgres://airy@db/airy"\ndirect_url = "postgres://airy@direct/airy"\n'
    settings = parse(text + '[log]\nurl = "postgres://airy@events/airy"', {})
    assert settings.database.url == "postgresql://airy@db/airy"
    assert settings.database.direct_url == "postgresql://airy@direct/airy"
    assert settings.log.location(settings.database.url) == "postgresql://airy@events/airy"


@pytest.mark.parametrize(
    "url, words",
    [
        ("", "an empty string"),
        ("hunter2", "a string that is not a URL"),
        ("sqlite:a.db", "a string that is not a URL"),
        ("host=db password=hunter2", "a string that is not a URL"),
        ("mysql://airy:hunter2@db/airy", "a mysql:// URL"),
        ("postgresql+psycopg2://airy:hunter2@db/airy", "a postgresql+psycopg2:// URL"),
        ("sqlite+aiosqlite:///a.db", "a sqlite+aiosqlite:// URL"),
        ("hunter2://airy@db/airy", "a URL of another kind"),
        ("POSTGRESQL://airy:hunter2@db/airy", "a URL of another kind"),
        ("postgresql://airy:hunter2@db:port/airy", "a URL that cannot be read"),
        ("postgresql://airy:hunter2@db\\u0000/airy", "a URL that cannot be read"),
        ("postgresql://airy:hunter2@db:0/airy", "a port outside 1 to 65535"),
        ("postgresql://airy:hunter2@db:65536/airy", "a port outside 1 to 65535"),
        ("sqlite://", "an SQLite URL without a file (a database in memory belongs to one process)"),
        ("sqlite:///", "an SQLite URL without a file (a database in memory belongs to one process)"),
        ("sqlite:///:memory:", "an SQLite URL without a file (a database in memory belongs to one process)"),
        ("sqlite://a.db", "an SQLite URL with a host (a relative path follows three slashes, an absolute one four)"),
        ("sqlite:///a.db?mode=ro", 'an SQLite URL with "?" (it takes no options)'),
        ("sqlite:///a?b.db", 'an SQLite URL with "?" (it takes no options)'),
        ("postgresql://user:one@two@host/db", "a URL with two @ (in a password write %40)"),
        ("sqlite:///file:a.db", "an SQLite URL with file: (write the path alone)"),
    ],
)
def test_unsupported_database_urls(url: str, words: str) -> None:
    allowed = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    assert faults(f'[database]\nurl = "{url}"') == (f"database.url: found {words}, expected {allowed}",)
    if url:
        hint = "; for another event store set log.store too" if words.endswith((":// URL", "another kind")) else ""
        expected = f'{allowed}, redis://HOST, or ""{hint}'
        assert fault(f'[log]\nurl = "{url}"') == f"log.url: found {words}, expected {expected}"


def test_direct_url_must_be_postgres() -> None:
    text = f'[database]\nurl = "{POSTGRES}"\ndirect_url = '
    assert faults(f'{text}"{POSTGRES}"\nx = 1') == faults(f'{text}""\nx = 1')
    assert faults(f'{text}"sqlite:///a.db"') == (
        'database.direct_url: found a sqlite:// URL, expected postgresql://USER@HOST/DATABASE, or ""',
    )


def test_direct_url_with_sqlite_is_refused() -> None:
    assert faults(f'[database]\nurl = "{URL}"\ndirect_url = "{POSTGRES}"') == (
        "database: direct_url is for PostgreSQL behind a pooler, but url is an SQLite URL",
    )


def test_url_with_the_memory_store_is_refused() -> None:
    assert fault('[log]\nstore = "memory"\nurl = "sqlite:///a.db"') == (
        'log: url is for store = "sql", but store is "memory"'
    )


@pytest.mark.parametrize("url", ["redis://h", "redis://u:p@h:6379/1", "rediss://h", "unix:///run/redis.sock"])
def test_redis_url_needs_the_redis_store(url: str) -> None:
    assert read(f'[log]\nstore = "redis"\nurl = "{url}"').log.url == url
    for store in ("sql", "memory"):
        assert fault(f'[log]\nstore = "{store}"\nurl = "{url}"') == (
            f'log: url is for store = "redis", but store is "{store}"'
        )


@pytest.mark.parametrize("url", ["", "sqlite:///a.db", POSTGRES])
def test_redis_store_needs_a_redis_url(url: str) -> None:
    assert fault(f'[log]\nstore = "redis"\nurl = "{url}"') == 'log: store is "redis", which needs url = "redis://HOST"'


@pytest.mark.parametrize(
    "url",
    [
        "",
        "acme://",
        "acme://hunter2@one:1,two:2/log?key=%20 x",
        "a1+b-c.d:///x@y@z:99999",
        "sqlite:///a.db?mode=ro",
        "postgres://db/airy",
        "mysql://db",
    ],
)
def test_store_of_another_package_gets_any_url_unchanged(url: str) -> None:
    for order in (f'store = "acme.events"\nurl = "{url}"', f'url = "{url}"\nstore = "acme.events"'):
        assert read(f"[log]\n{order}").log.url == url
    assert read('[log]\nstore = "acme.events"\nurl = "${LOG_URL}"', {"LOG_URL": url}).log.url == url


@pytest.mark.parametrize(
    "url", ["hunter2", "acme:hunter2", "hun ter2://h", "hün://h", "2hun://ter", "://hunter2", "acme://hunter2\\n"]
)
def test_store_of_another_package_needs_a_scheme(url: str) -> None:
    assert fault(f'[log]\nstore = "acme.events"\nurl = "{url}"') == (
        'log.url: found a string that is not a URL, expected SCHEME://ANYTHING without control characters, or ""'
    )


@pytest.mark.parametrize("store", ["memory", "sql", "redis"])
def test_built_in_store_refuses_the_scheme_of_another(store: str) -> None:
    assert fault(f'[log]\nstore = "{store}"\nurl = "acme://hunter2"').startswith(
        "log.url: found a URL of another kind, expected "
    )


TOKENS_WORDS = (
    "expected NAME = TOKEN: a name of at most 64 letters, digits, dots, dashes and underscores, a token of 1 to 2048 "
    "printable ASCII characters without spaces, each token once"
)


@pytest.mark.parametrize(
    "tokens, found",
    [
        ('{ agent = "" }', "an empty token of agent"),
        ('{ agent = "hunter 2" }', "another token of agent"),
        ('{ agent = "hünter2" }', "another token of agent"),
        ('{ agent = "hunter2\\n" }', "another token of agent"),
        (f'{{ agent = "{"x" * 2049}" }}', "another token of agent"),
        ('{ a = "ok", b = "", c = "h 2" }', "an empty token of b, c"),
        ('{ a = "hunter2", b = "hunter2" }', "the same token twice"),
        ('{ "" = "hunter2" }', "another name"),
        ('{ "hunter 2" = "agent" }', "another name"),
        (f'{{ {"x" * 65} = "hunter2" }}', "another name"),
        ('"hunter2"', "string"),
        ('["hunter2"]', "an array"),
    ],
)
def test_unusable_tokens_are_refused(tokens: str, found: str) -> None:
    reported = fault(f'[auth]\nmode = "tokens"\ntokens = {tokens}')
    allowed = "expected a table" if found in {"string", "an array"} else TOKENS_WORDS
    assert reported == f"auth.tokens: found {found}, {allowed}"
    assert "hunter" not in reported


@pytest.mark.parametrize("token", ["x", "x" * 2048, "!#$%&'()*+,-./:;<=>?@[]^_`{|}~"])
def test_tokens_at_the_bounds(token: str) -> None:
    name = "a" * 64
    assert read(f'[auth]\nmode = "tokens"\ntokens = {{ {name} = "{token}" }}').auth.tokens == {name: token}


def test_token_from_the_environment() -> None:
    text = '[auth]\nmode = "tokens"\ntokens = { agent = "${AGENT_TOKEN}" }'
    assert read(text, {"AGENT_TOKEN": "hunter2"}).auth.tokens == {"agent": "hunter2"}
    assert fault(text) == "auth.tokens.agent: not set in the environment: AGENT_TOKEN"
    assert fault(text, {"AGENT_TOKEN": ""}).startswith("auth.tokens: found an empty token of agent, ")


def test_token_of_another_type_is_not_shown() -> None:
    assert fault('[auth]\nmode = "tokens"\ntokens = { agent = 20261124 }') == (
        "auth.tokens.agent: found integer, expected a string"
    )


def test_key_instead_of_its_file_is_not_shown() -> None:
    for key in ("-----BEGIN PRIVATE KEY-----", "MIGHAgEA\\nMBMGByqG"):
        reported = fault(f'[listener]\ntls_certificate = "server.pem"\ntls_key = "{key}"')
        assert reported == 'listener.tls_key: found string, expected the name of a file, or ""'


@pytest.mark.parametrize("there", ["tls_certificate", "tls_key"])
def test_tls_needs_certificate_and_key(there: str) -> None:
    assert fault(f'[listener]\n{there} = "server.pem"') == f"listener: only {there} is set, but TLS needs both"


def test_tokens_and_their_mode_go_together() -> None:
    assert (
        fault('[auth]\nmode = "tokens"') == 'auth: mode is "tokens", but there are no tokens: no client could connect'
    )
    assert fault('[auth]\ntokens = { agent = "hunter2" }') == (
        'auth: there are tokens, but mode is "none": every client could connect'
    )


@pytest.mark.parametrize(
    "name, place",
    [
        ('"labels"', (None, "labels")),
        ('"chat.labels"', ("chat", "labels")),
        ('"chat.la.bels"', ("chat", "la.bels")),
        ('["chat", "la.bels"]', ("chat", "la.bels")),
        ('"Weird Labels"', (None, "Weird Labels")),
    ],
)
def test_table_names(name: str, place: tuple[str | None, str]) -> None:
    assert read(f"[database.tables.tags]\nname = {name}").tables.mapped["tags"].location("tags") == place


def test_empty_name_is_no_table() -> None:
    assert "tags" not in read('[database.tables.tags]\nname = ""').tables.mapped


@pytest.mark.parametrize("name", ['"."', '".a"', '"a."', "[]", '["a"]', '["a", ""]', '["a", "b", "c"]', '"a\\u0000"'])
def test_invalid_table_names(name: str) -> None:
    assert fault(f"[database.tables.tags]\nname = {name}").endswith(
        'expected "table", "schema.table", ["schema", "table"] or ""'
    )


def test_overlong_time_zone_is_refused() -> None:
    assert fault(f"[database.tables.tags]\ntime_zone = '{'x' * 300}'") == (
        "database.tables.tags.time_zone: found string (not shown), "
        "expected a name of the time zone database, such as Europe/Berlin"
    )
