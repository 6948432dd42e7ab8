"""Our tables in the application's database: the change log, and what we remember beside it.

``change_log``: one row for each changed row, keys only. ``change_state``: a single row with the log that consumes these
changes (``consumer_epoch``, ``consumer_store``) and their history (``points.History``). The tables are made by
``migrations/changes``.
"""

from typing import Any

import sqlalchemy as sa
from attrs import frozen

from airy_trio.changes.driver import Question
from airy_trio.changes.feed import Consumer
from airy_trio.changes.points import History
from airy_trio.database import POSTGRES, Names

TABLE = "change_log"
STATE = "change_state"
MARKS_CHARS_MAX = 500  # of those that were sealed and perhaps never appended: 29 of them
_ONLY = 1  # the id of the state's single row


@frozen(init=False)
class ChangeLog:
    """The change log under its names in one database."""

    names: Names
    rows: sa.Table
    state: sa.Table
    _history: Question

    def __init__(self, names: Names) -> None:
        metadata = sa.MetaData(schema=names.table_schema)
        columns: list[sa.Column[Any]] = [
            sa.Column("seq", sa.BigInteger, primary_key=True),
            sa.Column("kind", sa.Text),
            sa.Column("operation", sa.Text),
            *(sa.Column(name) for name in ("key_1", "key_2", "old_1", "old_2")),
            sa.Column("at"),
            sa.Column("txid" if names.dialect == POSTGRES else "token"),
        ]
        state = sa.Table(
            names.bare(STATE),
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            *(sa.Column(name, sa.Text) for name in ("origin", "consumer_epoch", "consumer_store")),
            *(sa.Column(name, sa.Text) for name in ("mark", "replaced_mark")),
        )
        quoted = names.quoted(STATE).replace(":", "\\:")
        history = Question(sa.text(f"select source, origin, mark, replaced_mark from {quoted}"))  # noqa: S608 - quoted
        rows = sa.Table(names.bare(TABLE), metadata, *columns)
        self.__attrs_init__(names=names, rows=rows, state=state, history=history)

    def count(self, connection: sa.Connection) -> int:
        """How many changes wait: a stopped server leaves the log growing."""
        return connection.execute(sa.select(sa.func.count()).select_from(self.rows)).scalar_one()

    def origin(self, connection: sa.Connection) -> str | None:
        """Where an empty event log starts; None before the first migration has written it."""
        found: str | None = connection.execute(sa.select(self.state.c.origin)).scalar_one_or_none()
        return found

    def set_origin(self, connection: sa.Connection, origin: str) -> None:
        """Move the point from which an empty event log starts."""
        updated = connection.execute(sa.update(self.state).values(origin=origin))
        if not updated.rowcount:
            connection.execute(sa.insert(self.state).values(id=_ONLY, origin=origin))

    def history(self, connection: sa.Connection) -> History | None:
        """What is kept of the history of these changes; None before the first migration has written it."""
        for source, origin, mark, replaced_mark in self._history.rows(connection, {}):
            return History(source=source, origin=origin, mark=mark, replaced_mark=replaced_mark)
        return None

    def seal(self, connection: sa.Connection, mark: str, replaced_mark: str) -> None:
        """Keep the mark of a point that is about to be recorded, and of the one that it replaces.

        If another one was sealed since that one, its append may still happen: it is kept as well.
        """
        before = self.state.c.mark
        unsettled = sa.func.substr(before + " " + self.state.c.replaced_mark, 1, MARKS_CHARS_MAX)
        kept = sa.case((before == replaced_mark, replaced_mark), else_=sa.literal(replaced_mark) + " " + unsettled)
        connection.execute(sa.update(self.state).values(mark=mark, replaced_mark=kept))

    def settle(self, connection: sa.Connection, mark: str) -> None:
        """Forget the marks of the replaced points, unless another point was sealed meanwhile."""
        connection.execute(sa.update(self.state).where(self.state.c.mark == mark).values(replaced_mark=mark))

    def consumer(self, connection: sa.Connection) -> Consumer | None:
        """The event log that consumes these changes."""
        columns = self.state.c.consumer_epoch, self.state.c.consumer_store
        row = connection.execute(sa.select(*columns)).one_or_none()
        return None if row is None or row.consumer_epoch is None else Consumer(row.consumer_epoch, row.consumer_store)

    def set_consumer(self, connection: sa.Connection, consumer: Consumer) -> None:
        """Name the event log that consumes these changes from now on."""
        connection.execute(sa.update(self.state).values(consumer_epoch=consumer.epoch, consumer_store=consumer.store))
