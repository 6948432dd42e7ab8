"""The picture of the README: it shows a real run, and is drawn completely."""

import re
from xml.etree import ElementTree as ET

from tests import pictures
from tests.application import Application

NUMBERS = re.compile(r"(\d+) missed events in (\d+) ms")


async def test_run_misses_events_and_receives_them(sqlite_application: Application) -> None:
    happened = await pictures.run(sqlite_application)  # fails if an event is missing or repeated
    assert happened.resume == "resumed"
    assert len(happened.missed) >= pictures.MISSED_ROWS - 1
    assert NUMBERS.search(pictures.svg(happened))


def test_picture_shows_every_row_and_event() -> None:
    text = pictures.IMAGE.read_text()
    circles = ET.fromstring(text).findall(".//{http://www.w3.org/2000/svg}circle")  # noqa: S314 - our own file
    assert len(circles) == 2 * pictures.ROWS
    [(count, _)] = NUMBERS.findall(text)
    assert int(count) >= pictures.MISSED_ROWS - 1
