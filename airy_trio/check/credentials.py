"""The keys of web tokens, looked at once, as the server would."""

import trio

from airy_trio.check.report import Report
from airy_trio.websocket.auth import AuthOptions
from airy_trio.websocket.auth.key_sources import KeyServer, source_of
from airy_trio.websocket.auth.keys import KeysFault


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
