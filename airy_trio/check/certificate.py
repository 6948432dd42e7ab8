"""What a check looks at in the certificate and its key: whether they can be served with, and for how long still."""

import stat
from datetime import UTC, datetime
from pathlib import Path

from airy_trio.app.renewal import certificate_of
from airy_trio.check.report import Report
from airy_trio.errors import StartError
from airy_trio.websocket.certificate import CERTIFICATE, KEY
from airy_trio.websocket.listener import ListenerOptions


def look(options: ListenerOptions, report: Report) -> None:
    """Look at both files, where there are any."""
    try:
        found = certificate_of(options)
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
