-- A help-desk as Rails creates its tables (Postgres): tickets from mailboxes, public comments and internal ones.
create table schema_migrations (version varchar primary key);
create table ar_internal_metadata (
    key varchar primary key, value varchar, created_at timestamp(6) not null, updated_at timestamp(6) not null
);
create table users (
    id bigserial primary key, email varchar not null, encrypted_password varchar not null, name varchar,
    role integer not null default 0, created_at timestamp(6) not null, updated_at timestamp(6) not null
);
create table customers (
    id bigserial primary key, name varchar, email varchar, company varchar, created_at timestamp(6) not null,
    updated_at timestamp(6) not null
);
create table mailboxes (
    id bigserial primary key, name varchar not null, email_address varchar not null, active boolean not null default true,
    created_at timestamp(6) not null, updated_at timestamp(6) not null
);
create table tickets (
    id bigserial primary key, subject varchar not null, description text, status integer not null default 0,
    priority integer not null default 1, mailbox_id bigint not null references mailboxes (id),
    customer_id bigint not null references customers (id), assignee_id bigint references users (id),
    created_at timestamp(6) not null, updated_at timestamp(6) not null
);
create table comments (
    id bigserial primary key, ticket_id bigint not null references tickets (id), author_type varchar not null,
    author_id bigint not null, body text not null, internal boolean not null default false, created_at timestamp(6) not null,
    updated_at timestamp(6) not null
);
create table custom_field_values (
    id bigserial primary key, ticket_id bigint not null references tickets (id), name varchar not null, value varchar,
    created_at timestamp(6) not null, updated_at timestamp(6) not null
);
create table tags (id bigserial primary key, name varchar not null, created_at timestamp(6) not null);
create table taggings (
    id bigserial primary key, tag_id bigint not null references tags (id), taggable_type varchar, taggable_id bigint,
    created_at timestamp(6)
);
create table canned_replies (
    id bigserial primary key, title varchar, body text, created_at timestamp(6) not null, updated_at timestamp(6) not null
);
create table active_storage_blobs (
    id bigserial primary key, key varchar not null, filename varchar not null, content_type varchar, metadata text,
    byte_size bigint not null, created_at timestamp(6) not null
);
create table versions (
    id bigserial primary key, item_type varchar not null, item_id bigint not null, event varchar not null,
    whodunnit varchar, object text, created_at timestamp(6)
);

insert into users (email, encrypted_password, name, created_at, updated_at) values ('amara@example.org', '!', 'Amara', now(), now());
insert into customers (name, email, created_at, updated_at) values ('Grace', 'grace@example.org', now(), now());
insert into mailboxes (name, email_address, created_at, updated_at) values ('Support', 'support@example.org', now(), now());
insert into tickets (subject, mailbox_id, customer_id, created_at, updated_at) values ('It is broken', 1, 1, now(), now());
insert into comments (ticket_id, author_type, author_id, body, internal, created_at, updated_at) values
    (1, 'Customer', 1, 'It does not start', false, '2020-10-25 21:24:54.56', now()),
    (1, 'User', 1, 'Ask her for the serial number', true, '2020-10-25 21:25:54.56', now()),
    (1, 'User', 1, 'What is the serial number?', false, '2020-10-25 21:26:54.56', now());
insert into custom_field_values (ticket_id, name, value, created_at, updated_at) values (1, 'product', 'Toaster', now(), now());
insert into tags (name, created_at) values ('hardware', now());
insert into canned_replies (title, body, created_at, updated_at) values ('Thanks', 'Thank you.', now(), now());
