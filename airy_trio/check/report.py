"""What a check has found, in words: problems, with which the server does not start or work, warnings, and notes.

What a check looks at in the certificate and its key: whether they can be served with, and for how long still.

Checks of ``[auth]``: the keys of web tokens, loaded once as the server would, and tokens without a grant.
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
from airy_trio.auth.key_sources import KeyServer, source_of
from airy_trio.auth.keys import KeysFault
from airy_trio.errors import StartError
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.websocket.tls import CERTIFICATE, KEY

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


def look_at_certificate(options: ListenerOptions, report: Report) -> None:
    """Look at both files, where there are any."""
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
        report.add("warning", [f"{KEY}: {options.tls_key}: everybody on this machine can read the key"])


def look_at_grants(options: AuthOptions, report: Report) -> None:
    """Warn if a web token without a grant reads everything."""
    if options.mode == "jwt" and not options.jwt_require_grants:
        channels, destinations = options.grant_claims
        what = f"a token without {channels} reads everything, unless {destinations} limits it"
        report.add("warning", [f"auth.jwt_require_grants: {what}; set it to true if every token carries a grant"])


def look_at_keys(options: AuthOptions, report: Report) -> None:
    """Tell what keeps web tokens from being verified; a server of keys may come back, a file does not by itself."""
    if options.mode != "jwt" or options.secret_is_shared:
        return
    source = source_of(options)
    try:
        trio.run(source.load)
    except KeysFault as fault:
        if isinstance(source, KeyServer):
            report.add("warning", [f"auth.jwt_key: {fault}; as long as that is so nobody can connect"])
        else:
            report.add("problem", [f"auth.jwt_key: {source.words}: {fault}"])
