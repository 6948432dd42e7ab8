"""Databases of other applications, with rows: the SQL files in ``schemas``."""

from pathlib import Path
from typing import Any

from tests.application import Application

FOLDER = Path(__file__).with_name("schemas")


def create(application: Application, name: str) -> None:
    """Create the tables of a schema, as its application would."""
    script = (FOLDER / f"{name}.sql").read_text()
    with application.engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        if application.dialect == "sqlite":
            for statement in script.split(";\n"):
                driver.execute(statement)
        else:
            driver.execute(script)
