-- The records of Airy Core, stored under their own field names (Postgres).
create table channels (id varchar(40) primary key, source text, "sourceChannelId" text, "connectionState" text);
create table messages (
    id varchar(40) primary key, "conversationId" varchar(40), "channelId" varchar(40), content text,
    "deliveryState" text, "isFromContact" boolean, "sentAt" bigint, "updatedAt" bigint, source text,
    "sourceRecipientId" text, "senderId" text
);
create table metadata (subject text, key text, value text, "valueType" text, timestamp bigint);
create table tags (id varchar(40) primary key, name text, color text);
create table templates (id varchar(40) primary key, name text, content text, source text, variables text);
create table users (id varchar(40) primary key, name text, "avatarUrl" text);
create table webhooks (id varchar(40) primary key, url text, status text, "subscribedAt" bigint);

insert into channels values ('ch1', 'facebook', 'page-1', 'CONNECTED'), ('ch2', 'chatplugin', 'website', 'DISCONNECTED');
insert into messages values
    ('m1', 'c1', 'ch1', '{"text": "Hello"}', 'DELIVERED', true, 1603661094560, null, 'facebook', 'page-1', 's1'),
    ('m2', 'c1', 'ch1', '{"text": "How can we help?"}', 'PENDING', false, 1603661095560, null, 'facebook', 's1', 'u1');
insert into metadata values ('conversation:c1', 'contact.displayName', 'Grace', 'text', 1603661094560);
insert into tags values ('t1', 'urgent', 'RED');
insert into users values ('u1', 'Amara', null);
