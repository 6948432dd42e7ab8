"""What a check has found, in words: problems, with which the server does not start or work, warnings, and notes."""

from collections.abc import Iterable
from typing import Literal

from attrs import field, frozen

Weight = Literal["problem", "warning", "note"]


@frozen
class Finding:
    """One line for a person, free of secrets."""

    weight: Weight
    text: str


@frozen
class Report:
    """All findings, in the order in which they were made."""

    findings: list[Finding] = field(factory=list)

    def add(self, weight: Weight, texts: Iterable[str]) -> None:
        """Add a finding for each text; one that was found before, by another look, is told once."""
        for finding in (Finding(weight, text) for text in texts):
            if finding not in self.findings:
                self.findings.append(finding)

    def of(self, weight: Weight) -> tuple[str, ...]:
        """The texts of one weight."""
        return tuple(finding.text for finding in self.findings if finding.weight == weight)
