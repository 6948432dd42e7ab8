"""The report of a check, and the checks that need no database: the certificate and ``[auth]``.

A report has problems, with which the server would not start or not work, warnings and notes.
"""

import stat
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import trio
from attrs import field, frozen

from airy_trio.app.server import load_certificate
from airy_trio.auth import AuthOptions
from airy_trio.auth.keys import KeyServer, KeysFault, source_of
from airy_trio.errors import StartError
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.websocket.tls import CERTIFICATE, KEY

Weight = Literal["problem", "warning", "note"]


@frozen
class Finding:
    """One line for the operator, without secrets."""

    weight: Weight
    text: str


@frozen
class Report:
    """All findings, in order."""

    findings: list[Finding] = field(factory=list)

    def add(self, weight: Weight, texts: Iterable[str]) -> None:
        """Add a finding for each text, except those that the report has already."""
        for finding in (Finding(weight, text) for text in texts):
            if finding not in self.findings:
                self.findings.append(finding)

    def of(self, weight: Weight) -> tuple[str, ...]:
        """Return the texts of one weight."""
        return tuple(finding.text for finding in self.findings if finding.weight == weight)


def check_certificate(options: ListenerOptions, report: Report) -> None:
    """Check the certificate and its key, if TLS is configured: whether they are usable, and for how long."""
    try:
        found = load_certificate(options)
    except StartError as error:
        report.add("problem", error.faults)
        return
    if found is None:
        return
    now = datetime.now(UTC)
    warnings = list(found.warnings(now))
    report.add("warning", warnings)
    if not warnings:
        names = ", ".join(found.names) or "no host"
        report.add("note", [f"{CERTIFICATE}: valid for {names}, for {found.days_left(now)} more days"])
    if Path(options.tls_key).stat().st_mode & stat.S_IROTH:
        report.add("warning", [f"{KEY}: {options.tls_key}: every user of this machine can read the key"])


def check_grants(options: AuthOptions, report: Report) -> None:
    """Warn if a web token without a grant may read all events."""
    if options.mode == "jwt" and not options.jwt_require_grants:
        channels, destinations = options.grant_claims
        finding = f"a token without {channels} may read all events, unless {destinations} limits it"
        report.add("warning", [f"auth.jwt_require_grants: {finding}; set it to true if every token carries a grant"])


def check_keys(options: AuthOptions, report: Report) -> None:
    """Load the keys of web tokens as the server would. A key server may recover, so its failure is only a warning."""
    if options.mode != "jwt" or options.secret_is_shared:
        return
    source = source_of(options)
    try:
        trio.run(source.load)
    except KeysFault as fault:
        if isinstance(source, KeyServer):
            report.add("warning", [f"auth.jwt_key: {fault}; until this is resolved no client can connect"])
        else:
            report.add("problem", [f"auth.jwt_key: {source.words}: {fault}"])
