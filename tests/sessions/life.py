"""The life of a client from upgrade to disconnect, in which its session uses every feature."""

from typing import Final

import trio

from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Headers, StompClient

PLACE: Final = "/events/channel/ch9"


async def live(client: StompClient, *, credentials: Headers = (), durable: Headers = ()) -> None:
    """Run the life of a client. ``durable``: additional headers of its first subscription."""
    await client.upgrade()
    await client.connect(headers=[("heart-beat", "1000,1000"), *credentials])
    headers = [("replay", "all"), ("ack", "client"), ("prefetch-count", "2"), *durable]
    await client.subscribe(PLACE, headers=headers)
    message = await client.receive()
    await client.acknowledge(message)
    await client.ping()
    await trio.sleep(1.5)
    await client.send_text("\n")
    await client.send(Frame("UNSUBSCRIBE", (("id", "0"), ("receipt", "u"))))
    while (await client.receive()).get("receipt-id") != "u":
        pass
    await client.subscribe(PLACE, headers=[("last-event-id", str(message.get("message-id")))])
    await client.receive()
    await client.subscribe(PLACE, subscription="1")
    await client.disconnect()
