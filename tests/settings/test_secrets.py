"""No fault shows a password from the file or the environment, wherever it is and whatever the fault."""

import json
import traceback
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.errors import SettingsError
from airy_trio.settings import parse

PASSWORDS = st.text(min_size=8, max_size=30, alphabet="hunter2HUNTER%+~").filter(lambda text: len(set(text)) > 3)
SCHEMES = st.sampled_from(
    ["postgresql", "postgresql+psycopg", "postgres", "mysql", "sqlite", "redis", "nothing", "POSTGRESQL", ""]
)
PLACES = st.sampled_from(
    [
        "{scheme}://airy:{password}@db/airy",
        "{scheme}://{password}@db/airy",
        "{scheme}://{password}:x@db:port/airy",
        "{scheme}://airy:x@{password}/airy",
        "{scheme}://airy:x@db:{password}/airy",
        "{scheme}://airy:x@db:99999/{password}",
        "{scheme}://airy:x@db:99999/airy?password={password}",
        "{scheme}://airy:x@db/airy?{password}",
        "{scheme}:/airy:{password}@db/airy",
        "{scheme}:airy:{password}@db/airy",
        "{password}://airy@db/airy",
        "{password}",
        "host=db password={password}",
        "{scheme}://airy:{password}@@@db:1:2/airy",
        "{scheme}://[{password}",
        "{scheme}://airy:{password}\x00@db/airy",
        "{scheme}://airy:{password}\n@db/airy",
    ]
)
SECRET_SETTINGS = st.sampled_from(
    [
        ("database", "url"),
        ("database", "direct_url"),
        ("log", "url"),
        ("auth", "tokens"),
        ("auth", "jwt_key"),
        ("admin", "token"),
        ("listener", "tls_key"),
    ]
)
OTHER_SETTINGS = st.sampled_from(
    [
        ("database", "schema"),
        ("database", "migrate"),
        ("database", "usl"),
        ("database.tables.messages", "time_zone"),
        ("database.tables.messages", "columns"),
        ("database.tables.messages", "nme"),
        ("log", "store"),
        ("log", "tail_events"),
        ("listener", "port"),
        ("listener", "path"),
        ("auth", "mode"),
        ("logging", "level"),
        ("unknown", "url"),
    ]
)
SHAPES = st.sampled_from(["{}", "[{}]", "{{ url = {} }}", "[[{}]]"])


def lines(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return everything that the faults of a text show, also in a traceback."""
    try:
        parse(text, environ or {})
    except SettingsError as error:
        return "".join(traceback.format_exception(error)) + repr(error)
    return ""


def url_of(place: str, scheme: str, password: str) -> str:
    return place.format(scheme=scheme, password=password)


@given(PASSWORDS, SCHEMES, PLACES, SECRET_SETTINGS, SHAPES)
def test_secret_in_a_secret_setting_is_not_shown(
    password: str, scheme: str, place: str, setting: tuple[str, str], shape: str
) -> None:
    section, key = setting
    value = shape.format(json.dumps(url_of(place, scheme, password)))
    assert password not in lines(f"[{section}]\n{key} = {value}")


@given(PASSWORDS, SCHEMES, PLACES, SECRET_SETTINGS)
def test_secret_in_the_default_of_a_reference_is_not_shown(
    password: str, scheme: str, place: str, setting: tuple[str, str]
) -> None:
    section, key = setting
    value = json.dumps(f"${{UNSET:-{url_of(place, scheme, password)}}}${{UNSET_TOO}}")
    assert password not in lines(f"[{section}]\n{key} = {value}")


@given(PASSWORDS, SCHEMES, PLACES, SECRET_SETTINGS | OTHER_SETTINGS, SHAPES)
def test_secret_in_the_environment_is_not_shown(
    password: str, scheme: str, place: str, setting: tuple[str, str], shape: str
) -> None:
    section, key = setting
    value = shape.format('"${SECRET}"')
    assert password not in lines(f"[{section}]\n{key} = {value}", {"SECRET": url_of(place, scheme, password)})


@given(
    PASSWORDS,
    st.sampled_from(["postgresql://airy:{}@db/airy", "postgresql://airy@db/airy?password={}", "host=db password={}"]),
    OTHER_SETTINGS,
    SHAPES,
)
def test_secret_in_a_url_of_another_setting_is_not_shown(
    password: str, url: str, setting: tuple[str, str], shape: str
) -> None:
    section, key = setting
    value = shape.format(json.dumps(url.format(password)))
    assert password not in lines(f"[{section}]\n{key} = {value}")


@given(PASSWORDS)
def test_secret_in_a_key_is_not_shown(password: str) -> None:
    key = json.dumps(f"postgresql://airy:{password}@db/airy")
    for section in ("", "[database]\n", "[listener]\n", "[database.tables.tags.columns]\n"):
        assert password not in lines(f"{section}{key} = 1")


@given(PASSWORDS, st.data())
def test_secret_in_a_broken_file_is_not_shown(password: str, data: st.DataObject) -> None:
    text = f"[database]\nurl = \"postgresql://airy:{password}@db/airy\"\n[log]\nurl = '{password}'\n"
    place = data.draw(st.integers(0, len(text) - 1))
    width = data.draw(st.integers(0, 3))
    inserted = data.draw(st.text(max_size=2, alphabet="\"'=[]{}#\\\n,.\x00"))
    assert password not in lines(text[:place] + inserted + text[place + width :])


@pytest.mark.parametrize("section, key", [("database", "url"), ("database", "direct_url"), ("log", "url")])
@pytest.mark.parametrize("value", ["20261124", "2026.1124", "2026-11-24", "{ pin = 20261124 }", "[20261124]"])
def test_password_that_is_not_a_string_is_not_shown(section: str, key: str, value: str) -> None:
    reported = lines(f"[{section}]\n{key} = {value}")
    assert f"{section}.{key}: found " in reported
    assert "2026" not in reported


@pytest.mark.parametrize("setting", ["database.url", "database.direct_url", "log.url"])
def test_fault_is_still_reported(setting: str) -> None:
    section, key = setting.split(".")
    assert f"{setting}: found a mysql:// URL, expected" in lines(f'[{section}]\n{key} = "mysql://airy:hunter2@db/airy"')
