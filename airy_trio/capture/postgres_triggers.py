"""What a mapped table needs on Postgres: its triggers, a check of its partitions, and the rights of the server's role.

There is one function and one trigger for each table and event. Statement triggers with transition tables cost least for
bulk writes. Only row triggers see every row of a partitioned table and of logical replication: an insert directly into
a partition, or by a subscription, fires no statement trigger of the parent.

A trigger must never make a write of the application fail.

- The functions run with the rights of their owner (``security definer``), so a role without rights on our schema can
  still write its own tables.
- The application may rename or drop a column later. So no statement requires a column to exist: ``_source`` names it in
  a subquery over the rows, and if these have no such column, SQL's scoping finds the name one level further out, where
  it is NULL. The subquery is lateral, because the planner merges such a subquery into the query; with a scalar subquery
  for each column, an update took 4 µs longer.
- The change log has no sequence, because some applications read the id of a new row by ``lastval()``, which returns the
  value of the sequence that the session used last.
- Postgres plans a function's statement for the rows of its first call in a session, often a single one, and may reuse
  the plan for a million. So no statement joins the old rows with the new ones: a nested loop over 20,000 changed keys
  took 56 s, and without it they take 0.2 s.

The recorder finds a row by the text of its key. The text of a time, for example, depends on the settings of a session.
So the functions of a table with such a key run with the settings of the recorder's session (``PLAIN_TEXT``).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import sqlalchemy as sa
import structlog
from attrs import evolve, field, frozen

from airy_trio.capture.change_log import TABLE
from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import Column, ColumnType, Table, Tables
from airy_trio.capture.postgres import notify
from airy_trio.database import PLAIN_TEXT, Names, quote_identifier, quote_text

logger = structlog.get_logger(__name__)

_TRANSITIONS = {
    "insert": "referencing new table as airy_new",
    "update": "referencing old table as airy_old new table as airy_new",
    "delete": "referencing old table as airy_old",
}
_TRUNCATED = "airy_truncated"
# A deadlock, a lock that is not free or a full disk is none of these failures to read: the application may try again.
_NOT_READ = (
    "exception when transaction_rollback or lock_not_available or insufficient_resources or system_error then raise; "
    "when others then raise warning 'airy-trio cannot read % and does not send the deletion of its rows: %', "
    "tg_relid::regclass, sqlerrm;"
)
_KEYS_AND_OLD = "key_1, key_2, old_1, old_2"
_SAME_TEXT: Collection[ColumnType] = ("integer", "json", "numeric", "text", "uuid")
"""The types whose text is the same in each session."""


@frozen
class Trigger:
    """A trigger: the text that it runs, and how it fires. A disabled one has an empty body. Equal if they act alike.

    ``body`` is the text as the database stores it: on Postgres of the function, on SQLite the whole statement.
    ``plain_text``: it runs with the settings ``PLAIN_TEXT``. ``statements`` create the trigger, and replace one of the
    same name on Postgres.
    """

    body: str
    for_each_row: bool = False
    always: bool = False
    plain_text: bool = False
    statements: tuple[str, ...] = field(default=(), eq=False)

    @property
    def is_disabled(self) -> bool:
        """Whether it exists and does not fire."""
        return not self.body


def triggers(table: Table, names: Names, *, deletes: bool, always: bool) -> Mapping[str, Trigger]:
    """Return the triggers of one table by name. ``always``: they fire for the writes of a replica role too.

    TRUNCATE fires only its own trigger, which logs a deletion for each row; for messages only if their deletions are
    events or end the current state of messages (``deletes``). It uses the name that the table has then, because the
    application may have renamed it.
    """
    if always:
        table = evolve(table, row_triggers=True)
    old, new = "airy_old", "airy_new"
    if table.row_triggers:
        # A session keeps its plans of these statements until a table that they depend on is altered. Transition tables
        # make them depend on the application's table; ``old`` and ``new`` do not, so this constant does. Without it,
        # writes would fail after ``ALTER COLUMN TYPE``, and the wrong column would be logged if two exchange names.
        depends = f"where '{table.oid}'::regclass is not null"
        old, new = f"(select old.* {depends})", f"(select new.* {depends})"
    updated = _logged(table, names, "U", new)
    # FOUND, the condition for notifying, is set by the body's last statement, the insert that logs every row. EXECUTE
    # does not set it, so TRUNCATE needs another condition.
    bodies = {
        "insert": _body(names, updated),
        "update": _body(names, f"{_logged_moved(table, names, old, new)} {updated}"),
        "delete": _body(names, _logged(table, names, "D", old)),
    }
    if deletes or table.kind != "messages":
        logged = quote_text(_logged(table, names, "D", _TRUNCATED))
        # The function's search path has no schema of the application, so regclass always writes the table's schema too.
        read = f"execute replace({logged}, {quote_text(_TRUNCATED)}, tg_relid::regclass::text);"
        # This reads the application's table. The function's owner may have lost the right to do so, or a policy of row
        # level security may fail. TRUNCATE itself is subject to neither, so neither may make it fail.
        bodies["truncate"] = _body(names, f"begin {read} {_NOT_READ} end", condition="true")
    plain_text = any(column is not None and column.type not in _SAME_TEXT for column in table.logged_columns("D"))
    session = "".join(f" set {name} = '{value}'" for name, value in PLAIN_TEXT.items()) if plain_text else ""
    made = {}
    for event, body in bodies.items():
        name = names.trigger(table.kind, event)
        for_each_row = table.row_triggers and event != "truncate"
        function = f"{quote_identifier(names.schema)}.{quote_identifier(f'{table.kind}_{event}')}()"
        if event == "truncate":
            # Before, because afterwards there is no row whose key could be logged.
            when = f"before truncate on {table.quoted} for each statement"
        elif for_each_row:
            when = f"after {event} on {table.quoted} for each row"
        else:
            when = f"after {event} on {table.quoted} {_TRANSITIONS[event]} for each statement"
        # ``pg_temp`` is named, and last, because Postgres would otherwise search it first for tables and types. Then a
        # session could replace those of the function by its own, and the function runs with the rights of its owner.
        create_function = (
            f"create or replace function {function} returns trigger language plpgsql "
            f"security definer set search_path = pg_catalog, pg_temp{session} as $airy_trio${body}$airy_trio$"
        )
        create_trigger = f"create or replace trigger {quote_identifier(name)} {when} execute function {function}"
        # Replacing a trigger resets its mode: it is enabled, and fires for the origin only. Hence the third statement.
        statements = [create_function, create_trigger]
        if always:
            statements.append(f"alter table {table.quoted} enable always trigger {quote_identifier(name)}")
        made[name] = Trigger(body, for_each_row, always, plain_text, tuple(statements))
    return made


def _body(names: Names, statement: str, condition: str = "found") -> str:
    """Return a function's body: log, then wake the recorder, but not if the statement touched no row."""
    # Without this, a column with the name of a variable, such as ``found`` or ``new``, would be an error.
    variables = "#variable_conflict use_column"
    return f" {variables} begin {statement}; {notify(names, condition)}; return null; end "


def _logged(table: Table, names: Names, operation: str, rows: str) -> str:
    """Return an insert into the change log for each of ``rows``; a deletion also logs what its event needs."""
    return (
        f"{_insert(names)} select {quote_text(table.kind)}, {quote_text(operation)}, airy_row.* "  # noqa: S608 - quoted
        f"from {_source(table.logged_columns(operation), rows)}"
    )


def _logged_moved(table: Table, names: Names, old: str, new: str) -> str:
    """Return a statement that logs a deletion for each key that no row has any more after the update.

    It tests with ``if exists`` first, because few updates change a key.
    """
    # A difference of sets, because transition tables do not show which old row became which new row. A statement may
    # also exchange keys between rows; then no key is gone.
    keys = table.logged_columns("U")
    # Qualified, because a column of the application may be named ``key_1`` too; then ``airy_none`` also has that name.
    before, after = (
        f"select airy_row.key_1, airy_row.key_2 from {_source(keys, rows)}"  # noqa: S608 - names quoted
        for rows in (old, new)
    )
    both = (
        f"select true, airy_row.* from {_source(table.logged_columns('D'), old)} "  # noqa: S608 - names quoted
        f"union all select false, airy_row.* from {_source(keys, new)}"
    )
    # No object has a NULL in its key. So if a row gets its key later, its former key must not be logged as deleted.
    known = " and ".join(f"{name} is not null" for name, _ in zip(("key_1", "key_2"), table.keys, strict=False))
    return (
        f"if exists ({before} except {after}) then {_insert(names)} "  # noqa: S608 - quoted
        f"select {quote_text(table.kind)}, 'D', key_1, key_2, max(old_1), max(old_2) "
        f"from ({both}) as airy_both(airy_was, {_KEYS_AND_OLD}) "
        f"group by key_1, key_2 having bool_and(airy_was) and {known}; end if;"
    )


def _insert(names: Names) -> str:
    return f"insert into {names.quoted(TABLE)} (kind, operation, {_KEYS_AND_OLD})"


def _source(columns: Sequence[Column | None], rows: str) -> str:
    """Return ``airy_row`` for a ``from`` clause: these columns of ``rows`` as text, named as in the change log.

    A column that is None, or that the rows lack, is NULL (see the module).
    """
    named = dict.fromkeys(quote_identifier(column.name) for column in columns if column is not None)
    nulls = ", ".join(f"null::text as {name}" for name in named)
    # Keys are compared by their octets, as clients compare ids, and not by the collation of the column.
    values = ", ".join(
        "null::text" if column is None else f'{quote_identifier(column.name)}::text collate "C"' for column in columns
    )
    return (
        f"(select {nulls}) as airy_none cross join lateral "  # noqa: S608 - names quoted
        f"(select {values} from {rows} as airy_rows) as airy_row({_KEYS_AND_OLD})"
    )


_ROOT = sa.text("select cast(to_regclass(:name) as oid)")
_MEMBERS = sa.text(
    """
    with recursive member(oid, joined) as (
        select inhrelid, xmin from pg_inherits where inhparent = :root and not inhdetachpending
        union all
        select i.inhrelid, i.xmin
        from member join pg_inherits i on i.inhparent = member.oid where not i.inhdetachpending
    )
    select member.oid, cast(member.joined as text) as joined,
           format('%I.%I', n.nspname, c.relname) as name, c.relkind <> 'p' as holds_rows
    from member join pg_class c on c.oid = member.oid join pg_namespace n on n.oid = c.relnamespace
    """
)
# A partition that was dropped has the size NULL, so it does not count as empty.
_EMPTY = sa.text("select oid from unnest(cast(:oids as oid[])) oid where pg_relation_size(oid) = 0")


@frozen
class _Partition:
    """A partition at any depth. ``joined``: the transaction that made it a partition."""

    oid: int
    joined: str
    name: str = field(eq=False)
    holds_rows: bool


class Partitions:
    """The partitions of the mapped tables at the last check. ``deletes``: deleted messages are events.

    ATTACH PARTITION makes the rows of a table rows of the mapped table, and DETACH or DROP removes rows, without a
    write to any row, so no trigger reports them. Therefore a server compares the partitions regularly and logs those
    whose rows may not have been sent. The catalogue does not say how a table became a partition. So a partition that
    was created as one and filled since the last check is logged as well: a needless line is better than silent loss.
    """

    def __init__(self, *, deletes: bool) -> None:
        self._deletes = deletes
        self._known: Mapping[int, Collection[_Partition]] = {}

    def check(self, connection: sa.Connection, tables: Tables) -> None:
        """Log the partitions that joined or left with rows since the last check. The first check logs nothing."""
        known: dict[int, Collection[_Partition]] = {}
        for kind, table in tables.items():
            if table.row_triggers:
                root = connection.execute(_ROOT, {"name": table.quoted}).scalar_one()
                known[root] = {_Partition(*row) for row in connection.execute(_MEMBERS, {"root": root})}
                if root in self._known:
                    self._compare(connection, kind, table, self._known[root], known[root])
        self._known = known

    def _compare(
        self,
        connection: sa.Connection,
        kind: Kind,
        table: Table,
        before: Collection[_Partition],
        now: Collection[_Partition],
    ) -> None:
        joined = [partition for partition in now if partition not in before]
        present = {partition.oid for partition in now}
        left = [partition for partition in before if partition.oid not in present]
        if not joined and not left:
            return
        oids = [partition.oid for partition in (*joined, *left)]
        empty = set(connection.execute(_EMPTY, {"oids": oids}).scalars())
        for partition in joined:
            if partition.holds_rows and partition.oid not in empty:
                key = quote_identifier(table.keys[0].name)
                logger.warning(
                    "a partition with rows has joined; rows written before that are not sent, an UPDATE sends them",
                    table=table.name,
                    partition=partition.name,
                    statement=f"update {partition.name} set {key} = {key}",  # noqa: S608 - names quoted
                )
        for partition in left:
            if partition.holds_rows and partition.oid not in empty and (self._deletes or kind != "messages"):
                logger.warning(
                    "a partition was detached or dropped; its rows are not sent as deleted",
                    table=table.name,
                    partition=partition.name,
                )


def grant_statements(role: str, tables: Tables, names: Names) -> Iterator[str]:
    """Yield statements that let a server's role read the mapped tables and work in our schema, and nothing else.

    The role needs no right for the triggers, which run with the rights of their owner.
    """
    to = quote_identifier(role)
    for schema in sorted({table.schema for table in tables.values() if table.schema is not None}):
        yield f"grant usage on schema {quote_identifier(schema)} to {to}"
    for table in tables.values():
        yield f"grant select on {table.quoted} to {to}"
    schema = quote_identifier(names.schema)
    yield f"grant usage on schema {schema} to {to}"
    yield f"grant select, insert, update, delete on all tables in schema {schema} to {to}"
