"""Faults in ``[auth]``: each names its setting and shows no secret."""

import pytest

from tests.settings.reading import fault, faults, read

SECRET = "hunter2-" * 4
HS = f'[auth]\nmode = "jwt"\njwt_key = "{SECRET}"\njwt_algorithms = '


def test_supported_keys() -> None:
    for key in (
        "https://issuer.example/keys",
        "https://[::1]:8443/",
        "https://bücher.example/schlüssel",
        "keys.json",
        "/etc/airy/issuer.pem",
        "issuer",
    ):
        assert read(f'[auth]\nmode = "jwt"\njwt_key = "{key}"').auth.jwt_key == key
    for algorithms, secret in (('["HS256"]', SECRET), ('["HS256", "HS512"]', SECRET * 2), ('["HS384"]', "x" * 48)):
        text = f'[auth]\nmode = "jwt"\njwt_key = "${{JWT_SECRET}}"\njwt_algorithms = {algorithms}'
        assert read(text, {"JWT_SECRET": secret}).auth.jwt_key == secret


@pytest.mark.parametrize(
    "algorithms",
    ["[]", '["none"]', '["HS256", "none"]', '["RS255"]', '["PS256"]', '["EdDSA"]', '["rs256"]', '[""]', '["ES256K"]'],
)
def test_unknown_algorithm_is_refused(algorithms: str) -> None:
    reported = fault(HS + algorithms)
    assert reported.startswith("auth.jwt_algorithms: found ")
    assert reported.endswith("one or more of HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, ES512")


@pytest.mark.parametrize("leeway", ["-1", "600.1", "inf", "true"])
def test_a_leeway_beyond_its_bounds(leeway: str) -> None:
    assert fault(f"[auth]\njwt_leeway_s = {leeway}").startswith("auth.jwt_leeway_s: found ")


@pytest.mark.parametrize("leeway", ["0", "600"])
def test_a_leeway_on_its_bounds(leeway: str) -> None:
    text = f'[auth]\nmode = "jwt"\njwt_key = "a.pem"\njwt_leeway_s = {leeway}'
    assert read(text).auth.jwt_leeway_s == float(leeway)


@pytest.mark.parametrize("name", ["channels", "https://id.example/channels", "a.b", " "])
def test_a_claim_may_have_any_name(name: str) -> None:
    text = f'[auth]\nmode = "jwt"\njwt_key = "a.pem"\njwt_channels_claim = "{name}"\njwt_destinations_claim = "d{name}"'
    assert read(text).auth.grant_claims == (name, f"d{name}")


@pytest.mark.parametrize("name", ["a b", "a;b", "a=b", "ä", "a,b", "a\\tb", '\\"a\\"'])
def test_invalid_cookie_name_is_refused(name: str) -> None:
    assert fault(f'[auth]\ncookie = "{name}"').startswith("auth.cookie: found ")


def test_a_cookie_may_carry_the_token_of_each_mode() -> None:
    assert read('[auth]\nmode = "tokens"\ntokens = { a = "t" }\ncookie = "__Host-airy"').auth.cookie == "__Host-airy"
    assert read('[auth]\nmode = "jwt"\njwt_key = "a.pem"\ncookie = "airy"').auth.cookie == "airy"


@pytest.mark.parametrize(
    "text, words",
    [
        ('mode = "jwt"', 'mode is "jwt", which needs jwt_key: a file or an https:// URL of public keys'),
        ('mode = "jwt"\njwt_algorithms = ["HS256"]', 'mode is "jwt", which needs jwt_key: the secret'),
        ('mode = "jwt"\njwt_key = "a.pem"\ntokens = { a = "hunter2" }', 'there are tokens, but mode is "jwt"'),
        ('mode = "jwt"\njwt_key = "hunter2"\njwt_algorithms = ["HS256", "RS256"]', "jwt_algorithms: HS* with others"),
        ('mode = "jwt"\njwt_key = "hunter2"\njwt_algorithms = ["HS256"]', "HS256 needs at least 32 bytes"),
        (f'mode = "jwt"\njwt_key = "{SECRET}"\njwt_algorithms = ["HS256", "HS512"]', "at least 64 bytes"),
        ('mode = "jwt"\njwt_key = "https://hunter2/"\njwt_algorithms = ["HS256"]', "HS* needs the secret itself"),
        ('mode = "jwt"\njwt_key = "-----BEGIN hunter2"\njwt_algorithms = ["HS256"]', "HS* needs the secret itself"),
        ('mode = "jwt"\njwt_key = "-----BEGIN hunter2"', "jwt_key: this is a key; put it in a file"),
        ('mode = "jwt"\njwt_key = "http://hunter2/keys"', "jwt_key: keys are fetched over https:// only"),
        ('mode = "jwt"\njwt_key = "https://"', "jwt_key: not a valid https:// URL"),
        ('mode = "jwt"\njwt_key = "https://[hunter2/"', "jwt_key: not a valid https:// URL"),
        ('mode = "jwt"\njwt_key = "https://hunter2:99999/"', "jwt_key: not a valid https:// URL"),
        (f'mode = "jwt"\njwt_key = "https://hunter2{"ü" * 64}/"', "jwt_key: not a valid https:// URL"),
        ('mode = "jwt"\njwt_key = "https://hunter2..ü/"', "jwt_key: not a valid https:// URL"),
        ('mode = "jwt"\njwt_key = "https://hunter 2/"', "jwt_key: not a valid https:// URL"),
        ('mode = "jwt"\njwt_key = "https://a:hunter2@b/"', "jwt_key: the URL has a user or a password"),
        ('mode = "jwt"\njwt_key = "hunter2\\u0000"', "jwt_key: not a file name"),
        ('jwt_key = "hunter2"', 'jwt_key: only for mode = "jwt", but mode is "none"'),
        ('jwt_issuer = "i"\njwt_audience = "a"', 'jwt_audience, jwt_issuer: only for mode = "jwt", but mode is "none"'),
        ("jwt_require_exp = false", 'jwt_require_exp: only for mode = "jwt", but mode is "none"'),
        (
            'mode = "jwt"\njwt_key = "keys.pem"\njwt_channels_claim = "c"\njwt_destinations_claim = "c"',
            'jwt_channels_claim and jwt_destinations_claim are both "c"',
        ),
        ("jwt_require_grants = true", 'jwt_require_grants: only for mode = "jwt", but mode is "none"'),
        ('cookie = "a"', 'cookie is set, but mode is "none": every client could connect'),
    ],
)
def test_contradictory_auth_options_are_refused(text: str, words: str) -> None:
    reported = fault(f"[auth]\n{text}")
    assert reported.startswith("auth: ")
    assert words in reported
    assert "hunter" not in reported


def test_cookie_needs_allowed_origins() -> None:
    auth = '[auth]\nmode = "tokens"\ntokens = { a = "hunter2" }\ncookie = "airy"\n'
    assert read(f'{auth}[listener]\nallowed_origins = ["https://airy.example"]').auth.cookie == "airy"
    reported = fault(f'{auth}[listener]\nallowed_origins = ["*"]')
    assert reported.startswith("auth.cookie, listener.allowed_origins: browsers send cookies from every page")


def test_all_contradictions_are_reported_at_once() -> None:
    assert (
        len(faults('[database]\nurl = "sqlite:///a.db"\n[auth]\ntokens = { a = "t" }\ncookie = "a"\njwt_issuer = "i"'))
        == 3
    )


def test_secret_of_another_type_is_not_shown() -> None:
    assert fault('[auth]\nmode = "jwt"\njwt_key = 20261124') == "auth.jwt_key: found integer, expected a string"
