"""The matrix: the capabilities of each client, with a reason for each that it lacks. A test checks each cell."""

from collections.abc import Mapping
from enum import Enum

from attrs import field, frozen


class Capability(Enum):
    """A capability of a client. The value is the heading of its column."""

    SUBSCRIBE = "logs in with a token, subscribes"
    EVENTS = "100 awkward events"
    HEART_BEATS = "heart-beats, both ways"
    RECONNECT = "catches up after a crash of the server"
    DISCONNECT = "disconnects with a receipt"
    RESUME = "resumes with `last-event-id`"


@frozen
class Verdict:
    """A cell. ``note``: how the client does it, or why it cannot; the tests check the note too."""

    works: bool
    note: str = ""


YES = Verdict(works=True)
BY_THE_APPLICATION = Verdict(works=True, note="The application has to reconnect; the client does not do it itself.")
BY_A_NEW_OBJECT = Verdict(
    works=True,
    note="The application has to reconnect with a new connection object: a reused one may stop its heart-beats.",
)
NO_RECEIPT = Verdict(works=False, note="It closes the WebSocket with its DISCONNECT, without waiting for the RECEIPT.")
NO_DISCONNECT = Verdict(works=False, note="It has no DISCONNECT; the application closes the WebSocket.")
NO_HEART_BEATS = Verdict(works=False, note="It requests none, so the server sends none.")
NO_HEADERS = Verdict(
    works=False,
    note="Its SUBSCRIBE takes no headers, so it receives the recent window, like every client without a position.",
)


@frozen
class RealClient:
    """A client of another project. ``package``: its name in its registry. ``program``: what runs it here."""

    package: str
    program: str
    language: str
    exceptions: Mapping[Capability, Verdict] = field(factory=dict)

    def verdict(self, capability: Capability) -> Verdict:
        """Return the cell in a column."""
        return self.exceptions.get(capability, YES)


CLIENTS = (
    RealClient("@stomp/stompjs", "stompjs.mjs", "JavaScript"),
    RealClient("@stomp/rx-stomp", "rx_stomp.mjs", "JavaScript"),
    RealClient(
        "webstomp-client",
        "webstomp.mjs",
        "JavaScript",
        {Capability.RECONNECT: BY_THE_APPLICATION, Capability.DISCONNECT: NO_RECEIPT},
    ),
    RealClient("stompman", "stompman_client.py", "Python"),
    RealClient("stomp.py", "stomp_py_client.py", "Python", {Capability.RECONNECT: BY_A_NEW_OBJECT}),
    RealClient(
        "webstompy",
        "webstompy_client.py",
        "Python",
        {
            Capability.HEART_BEATS: NO_HEART_BEATS,
            Capability.RECONNECT: BY_THE_APPLICATION,
            Capability.DISCONNECT: NO_DISCONNECT,
            Capability.RESUME: NO_HEADERS,
        },
    ),
)
