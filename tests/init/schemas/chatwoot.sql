-- The tables of a Chatwoot that concern messages, and some of the others (Postgres, Rails).
create table schema_migrations (version varchar primary key);
create table ar_internal_metadata (
    key varchar primary key, value varchar, created_at timestamp not null, updated_at timestamp not null
);
create table accounts (
    id serial primary key, name varchar not null, locale integer default 0, status integer default 0,
    created_at timestamp not null, updated_at timestamp not null
);
create table users (
    id serial primary key, email varchar, name varchar not null, display_name varchar, type varchar,
    availability integer default 0, created_at timestamp not null, updated_at timestamp not null
);
create table contacts (
    id serial primary key, name varchar default '', email varchar, phone_number varchar, account_id integer not null,
    additional_attributes jsonb default '{}', custom_attributes jsonb default '{}', identifier varchar,
    created_at timestamp not null, updated_at timestamp not null
);
create table inboxes (
    id serial primary key, channel_id integer not null, account_id integer not null, name varchar not null,
    created_at timestamp not null, updated_at timestamp not null, channel_type varchar,
    enable_auto_assignment boolean default true, greeting_message varchar, email_address varchar,
    working_hours_enabled boolean default false, out_of_office_message varchar, timezone varchar default 'UTC'
);
create table channel_web_widgets (
    id serial primary key, website_url varchar, account_id integer, website_token varchar, widget_color varchar
);
create table conversations (
    id serial primary key, account_id integer not null, inbox_id integer not null, status integer not null default 0,
    assignee_id integer, created_at timestamp not null, updated_at timestamp not null, contact_id bigint,
    display_id integer not null, additional_attributes jsonb default '{}', custom_attributes jsonb default '{}',
    last_activity_at timestamp not null, priority integer, cached_label_list text
);
create table messages (
    id serial primary key, content text, account_id integer not null, inbox_id integer not null,
    conversation_id integer not null, message_type integer not null, created_at timestamp not null,
    updated_at timestamp not null, private boolean not null default false, status integer default 0, source_id varchar,
    content_type integer not null default 0, content_attributes json default '{}', sender_type varchar,
    sender_id bigint, external_source_ids jsonb default '{}', additional_attributes jsonb default '{}',
    processed_message_content text, sentiment jsonb default '{}'
);
create table labels (
    id bigserial primary key, title varchar, description text, color varchar not null default '#1f93ff',
    show_on_sidebar boolean, account_id bigint, created_at timestamp not null, updated_at timestamp not null
);
create table tags (id serial primary key, name varchar, taggings_count integer default 0);
create table taggings (
    id serial primary key, tag_id integer, taggable_type varchar, taggable_id integer, context varchar(128)
);
create table notes (
    id bigserial primary key, content text not null, account_id bigint not null, contact_id bigint not null,
    user_id bigint, created_at timestamp not null, updated_at timestamp not null
);
create table canned_responses (
    id serial primary key, account_id integer not null, short_code varchar, content text,
    created_at timestamp not null, updated_at timestamp not null
);

insert into inboxes (channel_id, account_id, name, created_at, updated_at, channel_type)
    values (4, 1, 'Website', now(), now(), 'Channel::WebWidget');
insert into labels (title, created_at, updated_at) values ('urgent', now(), now());
insert into messages
    (content, account_id, inbox_id, conversation_id, message_type, created_at, updated_at, private, status, sender_type, sender_id)
    values
    ('Hello', 1, 1, 7, 0, '2020-10-25 21:24:54.56', now(), false, 0, 'Contact', 5),
    ('How can we help?', 1, 1, 7, 1, '2020-10-25 21:25:54.56', now(), false, 1, 'User', 2),
    ('between us', 1, 1, 7, 1, '2020-10-25 21:26:54.56', now(), true, 0, 'User', 2),
    ('Amara closed the conversation', 1, 1, 7, 2, '2020-10-25 21:27:54.56', now(), false, 0, null, null);
