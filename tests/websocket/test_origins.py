"""Host and Origin: which requests are allowed, and which settings are valid."""

import pytest

from airy_trio.websocket.admission import AdmissionOptions, Console, OriginRules, is_loopback
from airy_trio.websocket.request import RequestRefusedError
from tests.settings.reading import fault, read

CONSOLE = Console("127.0.0.1", range(8081, 8083))


def status(rules: OriginRules, host: str, origin: str | None, *, loopback: bool) -> int:
    try:
        rules.check(host, origin, loopback=loopback)
    except RequestRefusedError as refused:
        return refused.status.value
    return 0


@pytest.mark.parametrize(
    "host, loopback, expected",
    [
        ("localhost:8080", True, 0),
        ("LOCALHOST", True, 0),
        ("localhost.:8080", True, 0),
        ("app.localhost", True, 0),
        ("127.0.0.1:8080", True, 0),
        ("127.9.9.9", True, 0),
        ("[::1]:8080", True, 0),
        ("attacker.example:8080", True, 403),
        ("localhost.attacker.example", True, 403),
        ("127.0.0.1.attacker.example", True, 403),
        ("notlocalhost", True, 403),
        ("10.0.0.1", True, 403),
        ("attacker.example:8080", False, 0),
        ("", True, 400),
        ("a b", False, 400),
        ("a,b", False, 400),
        ("user@localhost", True, 400),
        ("localhost:", False, 400),
        ("localhost:123456", False, 400),
        ("\xff.example", False, 400),
        ("-a", False, 400),
    ],
)
def test_on_a_loopback_address_host_must_be_a_loopback_name(host: str, loopback: bool, expected: int) -> None:
    rules = OriginRules(AdmissionOptions(host="127.0.0.1", hosts=[], allowed_origins=[]), None)
    assert status(rules, host, None, loopback=loopback) == expected


@pytest.mark.parametrize("loopback", [False, True])
def test_hosts_are_allowed_in_addition_to_the_bound_one(*, loopback: bool) -> None:
    rules = OriginRules(
        AdmissionOptions(host="10.0.0.5", hosts=["Chat.Example.org", "[2001:DB8::1]"], allowed_origins=[]), None
    )
    for host in ("chat.example.org", "chat.example.org:443", "10.0.0.5:8080", "[2001:db8:0::1]:8080"):
        assert status(rules, host, None, loopback=loopback) == 0
    assert status(rules, "other.example.org", None, loopback=loopback) == 403
    assert status(rules, "localhost", None, loopback=loopback) == (0 if loopback else 403)


@pytest.mark.parametrize(
    "origin, host, expected",
    [
        (None, "chat.example.org", 0),
        ("https://chat.example.org", "chat.example.org", 0),
        ("HTTPS://Chat.example.org", "chat.example.org", 0),
        ("https://chat.example.org", "chat.example.org:443", 0),
        ("https://chat.example.org:443", "chat.example.org", 0),
        ("http://chat.example.org", "chat.example.org:80", 0),
        ("http://chat.example.org:8080", "chat.example.org:8080", 0),
        ("http://[::1]:8080", "[::1]:8080", 0),
        ("https://chat.example.org", "chat.example.org:8080", 403),
        ("http://chat.example.org:8080", "chat.example.org:8081", 403),
        ("https://other.example.org", "chat.example.org", 403),
        ("https://chat.example.org.attacker.example", "chat.example.org", 403),
        ("https://sub.chat.example.org", "chat.example.org", 403),
        ("null", "chat.example.org", 403),
        ("", "chat.example.org", 403),
        ("chat.example.org", "chat.example.org", 403),
        ("https://chat.example.org/", "chat.example.org", 403),
        ("https://user@chat.example.org", "chat.example.org", 403),
        ("https://chat.example.org https://chat.example.org", "chat.example.org", 403),
        ("file://", "chat.example.org", 403),
        ("capacitor://chat.example.org", "chat.example.org", 403),
    ],
)
def test_origin_must_match_host_without_a_list(origin: str | None, host: str, expected: int) -> None:
    rules = OriginRules(AdmissionOptions(host="0.0.0.0", hosts=[], allowed_origins=[]), CONSOLE)  # noqa: S104 - nothing listens
    assert status(rules, host, origin, loopback=False) == expected


@pytest.mark.parametrize(
    "origin, expected",
    [
        (None, 0),
        ("https://chat.example.org", 0),
        ("https://chat.example.org:443", 0),
        ("http://chat.example.org", 403),
        ("https://chat.example.org:444", 403),
        ("capacitor://localhost", 0),
        ("https://here:8080", 403),
        ("null", 403),
    ],
)
def test_list_of_origins_replaces_the_same_host(origin: str | None, expected: int) -> None:
    allowed = ["https://Chat.example.org", "capacitor://localhost"]
    rules = OriginRules(AdmissionOptions(host="0.0.0.0", hosts=[], allowed_origins=allowed), CONSOLE)  # noqa: S104 - the same
    assert status(rules, "here:8080", origin, loopback=False) == expected


@pytest.mark.parametrize("origin, expected", [("https://anything.example", 0), ("null", 403), ("no origin", 403)])
def test_star_allows_any_origin_but_null(origin: str, expected: int) -> None:
    rules = OriginRules(AdmissionOptions(host="127.0.0.1", hosts=[], allowed_origins=["*"]), None)
    assert status(rules, "localhost", origin, loopback=True) == expected


@pytest.mark.parametrize(
    "allowed, host, origin, details",
    [
        ([], "other.example:80", None, "Host is 'other.example:80'; to allow it, add its name to listener.hosts"),
        ([], "a b", None, "Host is 'a b'"),
        (["https://a"], "chat", "null", "Origin is 'null', Host is 'chat'; no setting allows this"),
        (["https://a"], "chat", "\xfe" * 256, f"Origin is '{chr(92)}xfe{chr(92)}xfe"),
        ([], "chat", f"https://{'b' * 250}", f"Origin is 'https://{'b' * 247}...', Host is 'chat'; to allow it, list"),
        (
            ["https://a"], "chat", "https://b",
            "Origin is 'https://b', Host is 'chat'; to allow it, list it and all other allowed origins in listener",
        ),
    ],
)  # fmt: skip
def test_refusal_names_host_origin_and_setting_to_the_log_alone(
    allowed: list[str], host: str, origin: str | None, details: str
) -> None:
    rules = OriginRules(AdmissionOptions(host="127.0.0.1", hosts=["chat"], allowed_origins=allowed), None)
    with pytest.raises(RequestRefusedError) as caught:
        rules.check(host, origin, loopback=True)
    assert str(caught.value).startswith(f"{caught.value.status.value}: {caught.value.words} {details}")
    assert len(str(caught.value)) < 1300
    assert b" is '" not in caught.value.answer()


@pytest.mark.parametrize(
    "console, origin, host, expected",
    [
        (CONSOLE, "http://localhost:8081", "localhost:8080", 0),
        (CONSOLE, "http://127.0.0.1:8081", "localhost:8080", 0),
        (CONSOLE, "http://localhost:8082", "localhost:8080", 0),
        (CONSOLE, "http://localhost:8083", "localhost:8080", 403),
        (CONSOLE, "https://localhost:8081", "localhost:8080", 403),
        (CONSOLE, "http://chat.example.org:8081", "chat.example.org:8080", 403),
        (Console("0.0.0.0", range(9000, 9001)), "http://chat.example.org:9000", "chat.example.org:8080", 0),  # noqa: S104 - the same
        (Console("0.0.0.0", range(9000, 9001)), "http://other.example.org:9000", "chat.example.org:8080", 403),  # noqa: S104 - an address that is compared, not bound
        (Console("127.0.0.1", range(0)), "http://localhost:8081", "localhost:8080", 403),
        (None, "http://localhost:8081", "localhost:8080", 403),
    ],
)
def test_the_console_is_an_origin_of_its_own(console: Console | None, origin: str, host: str, expected: int) -> None:
    rules = OriginRules(AdmissionOptions(host="127.0.0.1", hosts=["chat.example.org"], allowed_origins=[]), console)
    assert status(rules, host, origin, loopback=True) == expected


@pytest.mark.parametrize(
    "host, expected",
    [("localhost", True), ("::1", True), ("127.1.2.3", True), ("0.0.0.0", False), ("db1", False)],  # noqa: S104 - an address that is compared, not bound
)
def test_loopback_names(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "setting, found",
    [
        ('allowed_origins = ["https://a/"]', "https://a/"),
        ('allowed_origins = ["chat.example.org"]', "chat.example.org"),
        ('allowed_origins = ["null"]', "null"),
        ('allowed_origins = ["*", "https://a"]', '"*" together with others'),
        ('allowed_origins = ["https://*.example.org"]', "https://*.example.org"),
        ('hosts = ["a:8080"]', "a:8080"),
        ('hosts = ["https://a"]', "https://a"),
        ('hosts = [""]', "''"),
        ('trusted_proxies = ["10.0.0.1/8"]', "10.0.0.1/8"),
        ('trusted_proxies = ["proxy.example.org"]', "proxy.example.org"),
        ('trusted_proxies = ["*"]', "'*'"),
    ],
)
def test_invalid_setting_is_named(setting: str, found: str) -> None:
    message = fault(f"[listener]\n{setting}\n")
    assert message.startswith(f"listener.{setting.partition(' ')[0]}: found ")
    assert found in message


def test_valid_settings_are_accepted() -> None:
    listener = read(
        '[listener]\nhosts = ["chat.example.org", "10.0.0.5", "[::1]", "::1"]\n'
        'allowed_origins = ["https://chat.example.org:8443", "capacitor://localhost"]\n'
        'trusted_proxies = ["127.0.0.1", "10.0.0.0/8", "2001:db8::/32", "::1"]\n'
    ).listener
    assert (len(listener.hosts), len(listener.allowed_origins), len(listener.trusted_proxies)) == (4, 2, 4)
