"""A guess at what is to be read of Postgres: the rows behind the changes, asked for before it is known what these are.

It spares the round trip between the question what has changed and the question how it is now. Both are asked of one
snapshot, so the changes tell whether the guess was right. Only of tables with one key, of a type to which a text is
cast without fail; metadata are read by pair and for their owners, which cannot be guessed.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.dialects import postgresql

from airy_trio.changes.driver import Asked, Question, Row
from airy_trio.changes.keys import sure_form
from airy_trio.changes.queries import Queries
from airy_trio.changes.rows import Value
from airy_trio.changes.tables import Kind, Table
from airy_trio.database import quote_text
from airy_trio.pipeline import Statement

NUMBERED: Final = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


@frozen
class Guess:
    """A statement that gives the rows for which ``question`` would ask with keys of this ``form``."""

    question: Question
    statement: Statement
    form: str

    def covers(self, key: Value) -> bool:
        """Whether the row with this key was asked for; one with a key that is no text never is."""
        return not self.form or not isinstance(key, str) or re.fullmatch(self.form, key) is not None


class Guesses:
    """Those of ``possible`` that are ``made``: of the kinds that changed last, if one could guess at each of them."""

    def __init__(self, possible: Mapping[Kind, Guess]) -> None:
        self._possible = possible
        self._made: dict[Kind, Guess] = {}

    @property
    def made(self) -> Collection[Guess]:
        """In the order in which they are to be asked."""
        return self._made.values()

    def note(self, kinds: Iterable[Kind]) -> None:
        """Note of which kinds the last changes were."""
        guesses = {kind: self._possible.get(kind) for kind in kinds}
        made = {kind: guess for kind, guess in guesses.items() if guess is not None}
        self._made = made if len(made) == len(guesses) else {}

    def cover(self, changes: Iterable[tuple[Kind, Value]]) -> bool:
        """Whether the rows of these changed objects, of which the kind and the first key are told, were asked for."""
        return all(kind in self._made and self._made[kind].covers(key) for kind, key in changes)

    def answers(self, asked: Sequence[Asked], answers: Sequence[Sequence[Row]]) -> Sequence[Sequence[Row]]:
        """What would have been answered to questions that are covered, given the answers to those made."""
        found = {id(guess.question): answer for guess, answer in zip(self.made, answers, strict=False)}
        return [found[id(one.question)] for one in asked]


def guess_at(table: Table, queries: Queries, changes: str) -> Guess | None:
    """Guess at one kind; None where that cannot be done.

    ``changes``: a select of the change log with ``kind`` and ``key_1``, whose parameters are the statement's.
    """
    form = sure_form(table.keys[0]) if len(table.keys) == 1 and table.kind != "metadata" else None
    if form is None:
        return None
    cast = f" and key_1 ~ {quote_text(f'^{form}$')}" if form else ""
    keys = (
        f"(select distinct key_1 as airy_1 from ({changes}) changes "  # noqa: S608 - names quoted
        f"where kind = {quote_text(table.kind)}{cast}) airy_wanted"
    )
    sql = sa.text(queries.rows_of(keys.replace(":", "\\:"))).compile(dialect=NUMBERED)
    return Guess(queries.by_key, Statement(f"airy_guess_{table.kind}", str(sql)), form)
