"""The schemas that are recognised as a whole: our default tables, Airy Core's records, and Chatwoot.

Names and types alone do not say what Chatwoot's numbers mean, so its mapping is written down here. It is the same as in
``config/chatwoot.toml``, and that of Airy Core the same as in ``config/airy.toml``.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import field, frozen

from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import (
    FIELDS,
    KINDS,
    MessagesOptions,
    Scalar,
    TableOptions,
    TablesOptions,
)
from airy_trio.init.catalogue import FoundTable
from airy_trio.init.columns import Source
from airy_trio.init.proposal import Proposal, Proposals


@frozen(kw_only=True)
class Known:
    """A known schema. ``also``: further columns of its messages, which distinguish it from others."""

    name: str
    tables: TablesOptions
    also: frozenset[str] = field(default=frozenset())


KNOWN: Final = (
    Known(name="airy-trio's default tables", tables=TablesOptions()),
    Known(
        name="Airy Core's records",
        tables=TablesOptions(
            messages=MessagesOptions(
                columns={
                    "conversation_id": "conversationId",
                    "channel_id": "channelId",
                    "delivery_state": "deliveryState",
                    "from_contact": "isFromContact",
                    "sent_at": "sentAt",
                    "sender_id": "senderId",
                }
            ),
            metadata=TableOptions(columns={"value_type": "valueType", "updated_at": "timestamp"}),
            channels=TableOptions(
                columns={"source_channel_id": "sourceChannelId", "connected": "connectionState"},
            ),
        ),
    ),
    Known(
        name="Chatwoot's tables",
        also=frozenset({"account_id", "private", "content_type", "source_id"}),
        tables=TablesOptions(
            messages=MessagesOptions(
                columns={
                    "channel_id": "inbox_id",
                    "from_contact": "message_type",
                    "sent_at": "created_at",
                    "delivery_state": "status",
                },
                constants={"source": "chatwoot"},
                values={
                    "from_contact": {"0": True, "1": False, "3": False},
                    "delivery_state": {"0": "delivered", "1": "delivered", "2": "delivered", "3": "failed"},
                },
                where="not private and message_type in (0, 1, 3)",
                content="text",
            ),
            metadata=TableOptions(name=""),
            channels=TableOptions(
                name="inboxes",
                columns={"source": "channel_type", "source_channel_id": "channel_id"},
                constants={"connected": True},
                values={
                    "source": {
                        "Channel::WebWidget": "chatplugin",
                        "Channel::FacebookPage": "facebook",
                        "Channel::TwilioSms": "twilio.sms",
                    }
                },
            ),
            tags=TableOptions(name="labels", columns={"name": "title"}),
        ),
    ),
)


def recognised(tables: Sequence[FoundTable]) -> tuple[str, Proposals] | None:
    """Return the name of a known schema and its mapping, if the database has its messages. None otherwise.

    Kinds whose tables are missing, or have other columns, are left out.
    """
    by_name = {table.label: table for table in tables}
    for known in KNOWN:
        table = _table(known, "messages", by_name)
        if table is not None and known.also <= {*table.columns}:
            return known.name, {kind: _proposal(known, kind, by_name) for kind in KINDS}
    return None


def _table(known: Known, kind: Kind, tables: Mapping[str, FoundTable]) -> FoundTable | None:
    """Return the table of a kind if it has all columns of the mapping."""
    options = known.tables.of(kind)
    location = options.location(kind)
    table = None if location is None else tables.get(location[1])
    if table is None:
        return None
    wanted = {
        options.columns.get(one.name, one.name)
        for one in FIELDS[kind]
        if one.name not in options.constants and (one.name in options.columns or not one.optional)
    }
    return table if wanted <= {*table.columns} else None


def _proposal(known: Known, kind: Kind, tables: Mapping[str, FoundTable]) -> Proposal:
    table, options = _table(known, kind, tables), known.tables.of(kind)
    if table is None:
        return Proposal(kind=kind, why=f"no table has the name and the columns of {known.name}")
    sources: dict[str, Source] = {}
    for one in FIELDS[kind]:
        constant: Scalar | None = options.constants.get(one.name)
        column = options.columns.get(one.name, one.name)
        if constant is not None:
            sources[one.name] = Source(constant=constant, why="no such column")
        elif column in table.columns:
            sources[one.name] = Source(column=column, values=options.values.get(one.name, {}), why="known")
    return Proposal(
        kind=kind,
        why=f"recognised: {known.name}",
        table=table,
        sources=sources,
        where=options.where,
        content=options.content if isinstance(options, MessagesOptions) else "auto",
    )
