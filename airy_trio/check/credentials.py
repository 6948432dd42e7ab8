"""Checks of ``[auth]``: the keys of web tokens, loaded once as the server would, and tokens without a grant."""

import trio

from airy_trio.check.report import Report
from airy_trio.websocket.auth import AuthOptions
from airy_trio.websocket.auth.key_sources import KeyServer, source_of
from airy_trio.websocket.auth.keys import KeysFault


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
