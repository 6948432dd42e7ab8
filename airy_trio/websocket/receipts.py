"""RECEIPT, with which each request that asks for one is answered once it has taken effect."""

from airy_trio.websocket.framing import text_message
from airy_trio.websocket.subscriptions import Client


async def write_receipt(client: Client, receipt_id: str | None, headers: tuple[tuple[str, str], ...] = ()) -> None:
    """Write a RECEIPT with further headers; nothing where none is asked for."""
    if receipt_id is not None:
        await client.wire.write(text_message(client.connection.receipt(receipt_id, headers)))
