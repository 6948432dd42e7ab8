"""The tables that the worked examples in config/ map, as their applications create them."""

AIRY = (
    """
    create table messages (
        id varchar(40) primary key, "conversationId" varchar(40), "channelId" varchar(40), content text,
        "deliveryState" text, "isFromContact" boolean, "sentAt" bigint, source text, "senderId" text
    )
    """,
    'create table metadata (subject text, key text, value text, "valueType" text, timestamp bigint)',
    'create table channels (id varchar(40) primary key, source text, "sourceChannelId" text, "connectionState" text)',
    "create table tags (id varchar(40) primary key, name text, color text)",
)

CHATWOOT = (
    """
    create table messages (
        id serial primary key, content text, account_id int not null, inbox_id int not null,
        conversation_id int not null, message_type int not null, created_at timestamp not null, updated_at timestamp,
        private boolean not null default false, status int default 0, source_id varchar, sender_type varchar,
        sender_id bigint
    )
    """,
    """
    create table inboxes (
        id serial primary key, channel_id int not null, account_id int not null, name varchar not null,
        channel_type varchar
    )
    """,
    "create table labels (id bigserial primary key, title varchar, color varchar default '#1f93ff', account_id bigint)",
)

CHATWOOT_MESSAGE = (
    "insert into messages (content, account_id, inbox_id, conversation_id, message_type, created_at, private, status, "
    "sender_id) values ('{}', 1, 3, 7, {}, '2020-10-25 21:24:54.56', {}, {}, {})"
)
