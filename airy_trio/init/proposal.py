"""Propose a mapping: for each kind the table that fits best, and for each of its fields a column or a constant.

A table is scored by its name and by the names, types and references of its columns; a table that lacks a necessary part
has no score. The rows of the chosen table then decide how coded columns are translated, and rule out columns whose
values would not be accepted (``columns``).

Messages come first, because the other kinds refer to them: metadata is about what a message belongs to, and the table
of channels is the one that messages refer to. If a choice is not sure, it becomes a question.

Some schemas are recognised as a whole: our default tables, Airy Core's records, and Chatwoot. Names and types alone do
not say what Chatwoot's numbers mean. Its mapping and that of Airy Core are the examples in ``config/``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from airy_trio.capture.feed import ContentForm, Kind
from airy_trio.capture.mapping import FIELDS, KINDS, SINGULAR, MessagesOptions, Scalar, TablesOptions
from airy_trio.database import quote_identifier
from airy_trio.events.values import ANONYMOUS
from airy_trio.init.catalogue import FoundTable, Row
from airy_trio.init.columns import Columns, Source, candidates, references, target, translated, unseen_words, with_names
from airy_trio.init.vocabulary import (
    CHANNELS,
    CODED,
    CONVERSATIONS,
    DELETED_AT,
    HIDDEN,
    NOUNS,
    SHOWN,
    SUBJECTS,
    singular,
    squashed,
    without_id,
)
from airy_trio.settings import load

SCORE_MIN: Final = 9.0
"""A table with a lower score is not proposed for messages. Tables of people or of products score about 5."""
CLOSE: Final = 0.75
"""A choice is not sure if another table has more than this share of the best score."""
CHOICES_MAX: Final = 5
NONE: Final = "none"

Ask = Callable[[str, Sequence[str], str], str]
"""Takes a question, the possible answers and the best of them; returns an answer."""
Sample = Callable[[FoundTable], Sequence[Row]]


@frozen(kw_only=True)
class Proposal:
    """The mapping of one kind, and the reason. ``table``: None if no table fits."""

    kind: Kind
    why: str
    table: FoundTable | None = None
    sources: Mapping[str, Source] = field(factory=dict)
    where: str = ""
    content: ContentForm = "auto"

    def column(self, name: str) -> str | None:
        """Return the column of a field, if it has one."""
        source = self.sources.get(name)
        return None if source is None else source.column


Proposals = Mapping[Kind, Proposal]


def propose(tables: Sequence[FoundTable], sample: Sample, application: str, ask: Ask) -> Proposals:
    """Propose a mapping of each kind. ``application``: the constant for sources and channels without a column."""
    proposer = _Proposer(tables, sample, application, ask)
    messages = proposer.messages()
    found = {
        "messages": messages,
        "metadata": proposer.metadata(messages),
        "channels": proposer.channels(messages),
        "tags": proposer.tags(),
    }
    return {kind: found[kind] for kind in KINDS}


@define
class _Proposer:
    """Scores the tables, chooses one for each kind, and assigns its columns to the fields."""

    _tables: Sequence[FoundTable]
    _sample: Sample
    _application: str
    _ask: Ask

    def messages(self) -> Proposal:
        """Choose a table with a key and a text. A table of messages may have any name; those of other kinds may not."""
        scores = {one.label: score for one in self._tables if (score := _message_score(one)) >= SCORE_MIN}
        columns = self._choose("messages", scores)
        if columns is None:
            return Proposal(kind="messages", why="no table has a key, a text, and enough else of a message")
        columns.take_key()
        columns.take_named("content", always=True)
        self._group(columns)
        if not columns.take_named("sent_at"):
            self._ask_column(columns, "sent_at", 0)
        has_direction = columns.take_coded("from_contact")  # first: a column "sender" may be either
        if not columns.take_named("sender_id"):
            self._or_constant(columns, "sender_id", ANONYMOUS)
        if not has_direction:
            self._ask_column(columns, "from_contact", True)  # noqa: FBT003 - the constant
        if not columns.take_coded("delivery_state"):
            self._or_constant(columns, "delivery_state", "delivered")
        if not columns.take_named("source"):
            self._or_constant(columns, "source", self._application)
        return _proposal_of(columns, scores)

    def _group(self, columns: Columns) -> None:
        """Assign columns to the conversation and the channel of a message. One column may be both."""
        channel = columns.reference("channel_id", CHANNELS)
        conversation = columns.reference("conversation_id", CONVERSATIONS)
        if conversation is None and channel is None:  # with NULL is better than none: only rows with NULL are not sent
            conversation = next(references(columns.table, CONVERSATIONS), None)
        if channel is not None:
            columns.put("channel_id", Source(column=channel.name, why=f"refers to {target(channel)}"))
        else:
            self._or_constant(columns, "channel_id", self._application)
        if conversation is not None:
            columns.put("conversation_id", Source(column=conversation.name, why=f"refers to {target(conversation)}"))
        elif channel is not None:
            why = "the only column that groups messages: each channel is one conversation"
            columns.put("conversation_id", Source(column=channel.name, why=why))
        else:
            self._ask_column(columns, "conversation_id", "all")

    def metadata(self, messages: Proposal) -> Proposal:
        """Choose a table with keys, values, and what they are about."""
        scores: dict[str, float] = {}
        for table in self._others(messages):
            has_both = all(any(candidates(table, "metadata", name)) for name in ("key", "value"))
            if has_both and self._about(table, messages) is not None:
                scores[table.label] = 8.0 + _noun_score(table, NOUNS["metadata"])
        columns = self._choose("metadata", scores)
        about = None if columns is None else self._about(columns.table, messages)
        if columns is None or about is None:
            return Proposal(kind="metadata", why="no table has keys and values of a conversation, message or channel")
        for name, source in about.items():
            columns.put(name, source)
        columns.take_named("key", always=True)
        columns.take_named("value", always=True)
        columns.take_coded("value_type")
        columns.take_named("updated_at")
        return _proposal_of(columns, scores)

    def channels(self, messages: Proposal) -> Proposal:
        """Choose the table that messages refer to with their channel, or one with such a name."""
        channel = messages.column("channel_id")
        referred = None if messages.table is None or channel is None else messages.table.columns[channel].target
        scores: dict[str, float] = {}
        for one in self._others(messages):
            score = _noun_score(one, NOUNS["channels"]) + (8.0 if referred == one.name else 0.0)
            if score and one.key is not None:
                scores[one.label] = score
        columns = self._choose("channels", scores)
        if columns is None:
            return Proposal(kind="channels", why="no table has such a name, and messages refer to no channel")
        columns.take_key()
        if not columns.take_named("source"):
            self._or_constant(columns, "source", self._application)
        if not columns.take_named("source_channel_id"):
            why = "the key again: no column has the id of the platform"
            columns.put("source_channel_id", Source(column=columns.table.key, why=why))
        if not columns.take_coded("connected"):
            self._or_constant(columns, "connected", True)  # noqa: FBT003 - the constant
        return _proposal_of(columns, scores)

    def tags(self) -> Proposal:
        """Choose a table with such a name, a key and a name of the tag."""
        scores: dict[str, float] = {}
        for one in self._tables:
            score = _noun_score(one, NOUNS["tags"]) + (4.0 if any(candidates(one, "tags", "color")) else 0.0)
            if score >= _NOUN_SCORE_MIN and one.key is not None and any(candidates(one, "tags", "name")):
                scores[one.label] = score
        columns = self._choose("tags", scores)
        if columns is None:
            return Proposal(kind="tags", why="no table is called tags or labels and has a key and a name")
        columns.take_key()
        columns.take_named("name", always=True)
        if not columns.take_named("color"):
            self._or_constant(columns, "color", "tag-blue")
        return _proposal_of(columns, scores)

    def _about(self, table: FoundTable, messages: Proposal) -> Mapping[str, Source] | None:
        """Return the sources of subject and identifier; None if no column shows what a row is about."""
        columns = {squashed(name): column for name, column in table.columns.items()}
        for name, column in columns.items():
            class_of = columns.get(f"{name.removesuffix('id')}type") if name.endswith("id") else None
            if class_of is None or column.name == table.key:
                continue
            # A polymorphic reference, as in Rails: the class and the id of what the row is about.
            classes = class_of.labels or [str(row[class_of.name]) for row in self._sample(table)]
            if values := translated(classes, SUBJECTS):
                unseen = {} if class_of.labels else unseen_words(values, SUBJECTS)
                why = "the class of what the row is about"
                return {
                    "subject": Source(column=class_of.name, values=values, unseen=unseen, why=why),
                    "identifier": Source(column=column.name, why=f"belongs to {class_of.name}"),
                }
        if messages.table is None:
            return None
        for column in table.columns.values():
            for subject in ("conversation", "channel"):
                theirs = messages.table.columns.get(messages.column(f"{subject}_id") or "")
                if theirs is not None and (
                    squashed(column.name) == squashed(theirs.name) or (column.target or "") == theirs.target
                ):
                    return _constant_subject(subject, column.name)
            if column.target == messages.table.name or without_id(column.name) == singular(messages.table.name):
                return _constant_subject("message", column.name)
        return None

    def _others(self, messages: Proposal) -> Iterator[FoundTable]:
        return (table for table in self._tables if table is not messages.table)

    def _choose(self, kind: Kind, scores: Mapping[str, float]) -> Columns | None:
        """Return the columns of the table with the highest score. If another score is close, ask which table it is."""
        ranked = _ranked(scores)[:CHOICES_MAX]
        close = [name for name in ranked if scores[name] > CLOSE * scores[ranked[0]]]
        best = self._ask(f"which table has the {kind}", (*close, NONE), close[0]) if len(close) > 1 else None
        chosen = best or (ranked[0] if ranked else NONE)
        table = next((table for table in self._tables if table.label == chosen), None)
        return None if table is None else Columns(kind, table, self._sample(table))

    def _ask_column(self, columns: Columns, name: str, constant: Scalar) -> None:
        """Ask for the column of a field; without one it is a constant."""
        question = f"{SINGULAR[columns.kind]}: {_MISSING[name]}; which column is its {name}"
        chosen = self._ask(question, (*columns.free, NONE), NONE)
        if chosen == NONE:
            self._or_constant(columns, name, constant)
        elif name not in CODED or not columns.take_coded(name, chosen):
            columns.put(name, Source(column=chosen, why="chosen"))

    def _or_constant(self, columns: Columns, name: str, constant: Scalar) -> None:
        columns.put(name, Source(constant=constant, why=_MISSING[name]))


_NOUN_SCORE_MIN: Final = 5.0
_SHORT_TEXTS: Final = ("title", "subject", "summary", "name", "description")
"""Texts that many other tables have too."""
_MISSING: Final[Mapping[str, str]] = {
    "conversation_id": "no column groups messages",
    "channel_id": "no column refers to a channel",
    "sent_at": "no column has a time that can be used",
    "sender_id": "no column names the sender",
    "from_contact": "no column shows whether a contact wrote it",
    "delivery_state": "no column has a state with known words",
    "source": "no column names a platform",
    "connected": "no column has this state",
    "color": "no column has a color for each row",
}
"""The reason why a field is a constant."""


def _message_score(table: FoundTable) -> float:
    """Return how much a table looks like messages; 0 if it cannot have them."""
    texts = [column.name for column, _ in candidates(table, "messages", "content")]
    if table.key is None or not texts:
        return 0.0
    is_long = not squashed(texts[0]).endswith(_SHORT_TEXTS)
    score = _noun_score(table, NOUNS["messages"]) + (6.0 if is_long else 3.0)
    score += 5.0 if any(references(table, (*CONVERSATIONS, *CHANNELS))) else 0.0
    score += 3.0 if any(candidates(table, "messages", "sent_at")) else 0.0
    score += 3.0 if any(candidates(table, "messages", "sender_id")) else 0.0
    coded = ("from_contact", "delivery_state")
    return score + sum(any(any(with_names(table, code.names)) for code in CODED[name]) for name in coded)


def _noun_score(table: FoundTable, nouns: Sequence[str]) -> float:
    """Return up to 8.5 for a table whose last word is a noun, more for an earlier one; 0 for other names."""
    last = singular(table.name)
    for number, noun in enumerate(map(squashed, nouns)):
        if last.endswith(noun):
            return 8.0 - 4.0 * number / len(nouns) + (0.5 if last == noun else 0.0)
    return 0.0


def _proposal_of(columns: Columns, scores: Mapping[str, float]) -> Proposal:
    """Propose the columns that were assigned. ``why`` contains the scores."""
    kind, table = columns.kind, columns.table
    reason = f"named like {kind}" if _noun_score(table, NOUNS[kind]) > 0 else f"has the columns of {kind}"
    others = [f"{name} {scores[name]:.1f}" for name in _ranked(scores) if name != table.label][:3]
    more = f"; next best: {', '.join(others)}" if others else ""
    return Proposal(
        kind=kind,
        why=f"{reason}, score {scores[table.label]:.1f}{more}",
        table=table,
        sources=columns.sources,
        where=_where(table) if kind == "messages" else "",
        content=columns.content_form,
    )


def _ranked(scores: Mapping[str, float]) -> Sequence[str]:
    return sorted(scores, key=lambda name: -scores[name])


def _constant_subject(subject: str, column: str) -> Mapping[str, Source]:
    return {
        "subject": Source(constant=subject, why=f"{column} refers to a {subject}"),
        "identifier": Source(column=column, why=f"refers to a {subject}"),
    }


def _where(table: FoundTable) -> str:
    """Return a condition that leaves out private and deleted messages, by the names of columns; "" for none."""
    conditions: list[str] = []
    for names, flag, number, time in (
        (HIDDEN, "{} is not true", "coalesce({}, 0) = 0", ""),
        (SHOWN, "{} is not false", "coalesce({}, 1) <> 0", ""),
        (DELETED_AT, "", "coalesce({}, 0) = 0", "{} is null"),
    ):
        by_family = {"flag": flag, "integer": number, "time": time, "text": time}
        found = ((column, by_family.get(column.family)) for column in with_names(table, names))
        conditions += [form.format(quote_identifier(column.name)) for column, form in found if form]
    return " and ".join(conditions)


@frozen
class Known:
    """A known schema. ``file``: the example of its mapping; "": the default tables.

    ``also``: further columns of its messages, which distinguish it from others.
    """

    name: str
    file: str = ""
    also: frozenset[str] = field(default=frozenset())

    def tables(self) -> TablesOptions:
        """Read the mapping. The examples are inside the installed package, or next to it in a checkout."""
        if not self.file:
            return TablesOptions()
        package = Path(__file__).parents[1]
        inside = package / "config"
        folder = inside if inside.is_dir() else package.with_name("config")
        return load(folder / self.file, {"DATABASE_URL": "postgresql://host/database"}).tables


KNOWN: Final = (
    Known("airy-trio's default tables"),
    Known("Airy Core's records", "airy.toml"),
    Known("Chatwoot's tables", "chatwoot.toml", frozenset({"account_id", "private", "content_type", "source_id"})),
)


def recognised(tables: Sequence[FoundTable]) -> tuple[str, Proposals] | None:
    """Return the name of a known schema and its mapping, if the database has its messages. None otherwise.

    Kinds whose tables are missing, or have other columns, are left out.
    """
    by_name = {table.label: table for table in tables}
    for known in KNOWN:
        options = known.tables()
        table = _table(options, "messages", by_name)
        if table is not None and known.also <= {*table.columns}:
            return known.name, {kind: _proposal(known.name, options, kind, by_name) for kind in KINDS}
    return None


def _table(mapping: TablesOptions, kind: Kind, tables: Mapping[str, FoundTable]) -> FoundTable | None:
    """Return the table of a kind if it has all columns of the mapping."""
    options = mapping.of(kind)
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


def _proposal(known: str, mapping: TablesOptions, kind: Kind, tables: Mapping[str, FoundTable]) -> Proposal:
    table, options = _table(mapping, kind, tables), mapping.of(kind)
    if table is None:
        return Proposal(kind=kind, why=f"no table has the name and the columns of {known}")
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
        why=f"recognised: {known}",
        table=table,
        sources=sources,
        where=options.where,
        content=options.content if isinstance(options, MessagesOptions) else "auto",
    )
