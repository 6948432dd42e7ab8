"""The object that somebody asks about, by the names that a person uses."""

from typing import Final, Self

from attrs import frozen

from airy_trio.changes.tables import Kind

KINDS: Final[dict[str, Kind]] = {
    "message": "messages",
    "metadata": "metadata",
    "channel": "channels",
    "tag": "tags",
}
"""How a person calls each kind."""


@frozen(kw_only=True)
class Subject:
    """``id``: as on the wire; of metadata the identifier, with its ``subject``."""

    type: str
    id: str
    subject: str | None = None

    @classmethod
    def parse(cls, type_: str, id_: str) -> Self | None:
        """Read what was asked for; None where metadata lacks its ``SUBJECT:``."""
        if type_ != "metadata":
            return cls(type=type_, id=id_)
        subject, colon, identifier = id_.partition(":")
        return cls(type=type_, id=identifier, subject=subject) if colon and subject and identifier else None

    @property
    def kind(self) -> Kind:
        """The kind, as the settings name its table."""
        return KINDS[self.type]

    @property
    def object(self) -> str:
        """The identity that its events carry."""
        return f"{self.type}:{self.id}" if self.subject is None else f"metadata:{self.subject}:{self.id}"
