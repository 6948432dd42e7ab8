-- A to-do list (SQLite).
create table lists (id integer primary key autoincrement, name text not null, color text, position integer default 0);
create table todos (
    id integer primary key autoincrement, list_id integer not null references lists (id) on delete cascade,
    title text not null, notes text, done integer not null default 0, priority integer default 0, due_date text,
    created_at text not null default current_timestamp, updated_at text
);
create table tags (id integer primary key autoincrement, name text not null unique);
create table todo_tags (
    todo_id integer not null references todos (id), tag_id integer not null references tags (id),
    primary key (todo_id, tag_id)
);
create table settings (key text primary key, value text);

insert into lists (name, color) values ('Groceries', '#00ff00'), ('Work', null);
insert into todos (list_id, title, done, created_at) values
    (1, 'Milk', 1, '2020-10-25 21:24:54'), (1, 'Bread', 0, '2020-10-25 21:25:54'), (2, 'Write the report', 0, '2020-10-26 08:00:00');
insert into tags (name) values ('soon');
insert into settings values ('theme', 'dark');
