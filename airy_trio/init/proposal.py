"""Propose a mapping: for each kind the table that fits best, and for each of its fields a column or a constant.

A table is scored by its name and by the names, types and references of its columns; a table that lacks a necessary part
has no score. The rows of the chosen table then decide how coded columns are translated, and rule out columns whose
values would not be accepted (``columns``).

Messages come first, because the other kinds refer to them: metadata is about what a message belongs to, and the table
of channels is the one that messages refer to. If a choice is not sure, it becomes a question.

Some schemas are recognised as a whole: our default tables, Airy Core's records, and Chatwoot. Names and types alone do
not say what Chatwoot's numbers mean. Its mapping and that of Airy Core are the examples in ``config/``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import define, field, frozen

from airy_trio.capture.feed import ContentForm, Kind
from airy_trio.capture.mapping import FIELDS, KINDS, SINGULAR, MessagesOptions, Scalar, TableOptions, TablesOptions
from airy_trio.database import quote_identifier, quote_text
from airy_trio.events.values import ANONYMOUS
from airy_trio.init.catalogue import FoundTable, Row
from airy_trio.init.columns import (
    MISSING,
    Columns,
    Source,
    candidates,
    references,
    target,
    translated,
    unseen_words,
    with_names,
)
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
from airy_trio.migrate import installed
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
    return _Proposer(tables, sample, application, ask).proposals()


@define
class _Proposer:
    """Scores the tables, chooses one for each kind, and assigns its columns to the fields."""

    _tables: Sequence[FoundTable]
    _sample: Sample
    _application: str
    _ask: Ask
    _messages: Proposal = field(init=False)

    def proposals(self) -> Proposals:
        """Propose a mapping of each kind: messages first, because the other kinds refer to them."""
        self._messages = self._proposal("messages", _message_score, self._assign_messages)
        others: Proposals = {
            "metadata": self._proposal("metadata", self._metadata_score, self._assign_metadata),
            "channels": self._proposal("channels", self._channel_score, self._assign_channels),
            "tags": self._proposal("tags", _tag_score, self._assign_tags),
        }
        return {"messages": self._messages, **others}

    def _proposal(
        self, kind: Kind, score: Callable[[FoundTable], float], assign: Callable[[Columns], None]
    ) -> Proposal:
        """Propose the table with the highest score. If another score is close, ask which table it is."""
        scores = {one.label: found for one in self._tables if (found := score(one)) > 0}
        ranked = sorted(scores, key=lambda name: -scores[name])
        close = [name for name in ranked[:CHOICES_MAX] if scores[name] > CLOSE * scores[ranked[0]]]
        if len(close) > 1:
            close = [self._ask(f"which table has the {kind}", (*close, NONE), close[0])]
        table = next((one for one in self._tables if [one.label] == close), None)
        if table is None:
            return Proposal(kind=kind, why=_NO_TABLE[kind])
        columns = Columns(kind, table, self._sample(table))
        assign(columns)
        reason = f"named like {kind}" if _noun_score(table, kind) > 0 else f"has the columns of {kind}"
        if kind == "channels" and self._messages.table is not None and self._messages.column("channel_id") is None:
            reason += ", but messages do not refer to it"
        others = [f"{name} {scores[name]:.1f}" for name in ranked if name != table.label][:3]
        more = f"; next best: {', '.join(others)}" if others else ""
        return Proposal(
            kind=kind,
            why=f"{reason}, score {scores[table.label]:.1f}{more}",
            table=table,
            sources=columns.sources,
            where=_where(table) if kind == "messages" else _of_known_classes(columns),
            content=columns.content_form,
        )

    def _assign_messages(self, columns: Columns) -> None:
        columns.put("id", _key_of(columns.table))
        columns.take("content")
        self._assign_group(columns)
        if not columns.take("sent_at"):
            self._ask_column(columns, "sent_at", 0)
        has_direction = columns.take("from_contact")  # first: a column "sender" may be either
        columns.take("sender_id", ANONYMOUS)
        if not has_direction:
            self._ask_column(columns, "from_contact", True)  # noqa: FBT003 - the constant
        columns.take("delivery_state", "delivered")
        columns.take("source", self._application)

    def _assign_group(self, columns: Columns) -> None:
        """Assign columns to the conversation and the channel of a message. One column may be both."""
        channel = columns.reference("channel_id", CHANNELS)
        conversation = columns.reference("conversation_id", CONVERSATIONS)
        if conversation is None and channel is None:  # a column with NULLs: the other rows are sent
            conversation = next(references(columns.table, CONVERSATIONS), None)
        if channel is not None:
            columns.put("channel_id", Source(column=channel.name, why=f"refers to {target(channel)}"))
        else:
            columns.put_constant("channel_id", self._application)
        if conversation is not None:
            columns.put("conversation_id", Source(column=conversation.name, why=f"refers to {target(conversation)}"))
        elif channel is not None:
            why = "the only column that groups messages: each channel is one conversation"
            columns.put("conversation_id", Source(column=channel.name, why=why))
        else:
            self._ask_column(columns, "conversation_id", "all")

    def _metadata_score(self, table: FoundTable) -> float:
        """Score a table with keys, values, and columns that show what they are about."""
        has_both = all(any(candidates(table, "metadata", name)) for name in ("key", "value"))
        return 8.0 + _noun_score(table, "metadata") if has_both and self._about(table) is not None else 0.0

    def _assign_metadata(self, columns: Columns) -> None:
        for name, source in (self._about(columns.table) or {}).items():
            columns.put(name, source)
        columns.take("key", always=True)
        columns.take("value")
        columns.take("value_type")
        columns.take("updated_at")

    def _channel_score(self, table: FoundTable) -> float:
        """Score the table that the channel column of messages refers to, or a table that is named like channels."""
        column = self._messages.column("channel_id")
        messages = self._messages.table
        if table is messages or table.key is None:
            return 0.0
        is_referred = messages is not None and column is not None and messages.columns[column].target == table.name
        return _noun_score(table, "channels") + (8.0 if is_referred else 0.0)

    def _assign_channels(self, columns: Columns) -> None:
        columns.put("id", _key_of(columns.table))
        columns.take("source", self._application)
        if not columns.take("source_channel_id"):
            why = "the key again: no column has the id of the platform"
            columns.put("source_channel_id", Source(column=columns.table.key, why=why))
        columns.take("connected", True)  # noqa: FBT003 - the constant

    def _assign_tags(self, columns: Columns) -> None:
        columns.put("id", _key_of(columns.table))
        columns.take("name", always=True)
        columns.take("color", "tag-blue")

    def _about(self, table: FoundTable) -> Mapping[str, Source] | None:
        """Return the sources of subject and identifier; None if no column shows what a row is about."""
        messages = self._messages
        if table is messages.table:
            return None
        columns = {squashed(name): column for name, column in table.columns.items()}
        for name, column in columns.items():
            class_of = columns.get(f"{name.removesuffix('id')}type") if name.endswith("id") else None
            if class_of is None or column.name == table.key:
                continue
            # A polymorphic reference, as in Rails: the class and the id of what the row is about.
            classes = class_of.labels or [str(row[class_of.name]) for row in self._sample(table)]
            # Rows about other classes, such as a person, are left out (``_of_known_classes``).
            known = [one for one in classes if squashed(one) in SUBJECTS]
            if values := translated(known, SUBJECTS):
                unseen = {} if class_of.labels or len(known) < len(classes) else unseen_words(values, SUBJECTS)
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

    def _ask_column(self, columns: Columns, name: str, constant: Scalar) -> None:
        """Ask for the column of a field. If the answer is none, assign the constant."""
        question = f"{SINGULAR[columns.kind]}: {MISSING[name]}; which column is its {name}"
        chosen = self._ask(question, (*columns.free, NONE), NONE) if columns.free else NONE
        if chosen == NONE:
            columns.put_constant(name, constant)
        elif name not in CODED or not columns.take_coded(name, chosen):
            columns.put(name, Source(column=chosen, why="chosen"))


_SHORT_TEXTS: Final = ("title", "subject", "summary", "name", "description")
"""Texts that many other tables have too."""
_NO_TABLE: Final[Mapping[Kind, str]] = {
    "messages": "no table has a key, a text, and enough else of a message",
    "metadata": "no table has keys and values of a conversation, message or channel",
    "channels": "no table is named like channels, and messages refer to no channel",
    "tags": "no table is called tags or labels and has a key and a name",
}


def _key_of(table: FoundTable) -> Source:
    return Source(column=table.key, why="the key of the table")


def _message_score(table: FoundTable) -> float:
    """Score a table with a key and a text; 0 below ``SCORE_MIN``. A table of messages may have any name."""
    texts = [column.name for column, _ in candidates(table, "messages", "content")]
    if table.key is None or not texts:
        return 0.0
    is_long = not squashed(texts[0]).endswith(_SHORT_TEXTS)
    score = _noun_score(table, "messages") + (6.0 if is_long else 3.0)
    score += 5.0 if any(references(table, (*CONVERSATIONS, *CHANNELS))) else 0.0
    score += 3.0 if any(candidates(table, "messages", "sent_at")) else 0.0
    score += 3.0 if any(candidates(table, "messages", "sender_id")) else 0.0
    coded = ("from_contact", "delivery_state")
    score += sum(any(any(with_names(table, code.names)) for code in CODED[name]) for name in coded)
    return score if score >= SCORE_MIN else 0.0


def _tag_score(table: FoundTable) -> float:
    """Score a table that is named like tags and has a key and a column for the name."""
    score = _noun_score(table, "tags")
    if score == 0 or table.key is None or not any(candidates(table, "tags", "name")):
        return 0.0
    return score + (4.0 if any(candidates(table, "tags", "color")) else 0.0)


def _noun_score(table: FoundTable, kind: Kind) -> float:
    """Return up to 8.5 if a table's name ends with a noun of the kind, more for a noun listed earlier; otherwise 0."""
    last, nouns = singular(table.name), NOUNS[kind]
    for number, noun in enumerate(map(squashed, nouns)):
        if last.endswith(noun):
            return 8.0 - 4.0 * number / len(nouns) + (0.5 if last == noun else 0.0)
    return 0.0


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


def _of_known_classes(columns: Columns) -> str:
    """Return a condition that excludes the rows about unknown classes; "" if there are none."""
    subject = columns.sources.get("subject")
    if subject is None or subject.column is None:
        return ""
    classes = columns.table.columns[subject.column].labels or [str(row[subject.column]) for row in columns.rows]
    if subject.values.keys() >= {*classes}:
        return ""
    return f"{quote_identifier(subject.column)} in ({', '.join(map(quote_text, subject.values))})"


_KNOWN: Final = (
    ("airy-trio's default tables", "", ()),
    ("Airy Core's records", "airy.toml", ()),
    ("Chatwoot's tables", "chatwoot.toml", ("account_id", "private", "content_type", "source_id")),
)
"""Known schemas: the name, the example of its mapping ("": the default tables), and further columns of its messages,
which distinguish it from others."""


def recognised(tables: Sequence[FoundTable]) -> tuple[str, Proposals] | None:
    """Return the name of a known schema and its mapping, if the database has its messages. None otherwise.

    Kinds whose tables are missing, or have other columns, are left out.
    """
    by_name = {table.label: table for table in tables}
    for name, file, further in _KNOWN:
        example = installed("config") / file
        mapping = load(example, {"DATABASE_URL": "postgresql://host/database"}).tables if file else TablesOptions()
        found = {kind: _known(name, kind, mapping.of(kind), by_name) for kind in KINDS}
        messages = found["messages"].table
        if messages is not None and messages.columns.keys() >= {*further}:
            return name, found
    return None


def _known(name: str, kind: Kind, options: TableOptions, tables: Mapping[str, FoundTable]) -> Proposal:
    """Propose the mapping of one kind of a known schema; without a table if none has all of its columns."""
    columns = {one.name: options.columns.get(one.name, one.name) for one in FIELDS[kind]}
    needed = {
        columns[one.name]
        for one in FIELDS[kind]
        if one.name not in options.constants and (one.name in options.columns or not one.optional)
    }
    _, table_name = options.location(kind)
    table = tables.get(table_name)
    if table is None or not table.columns.keys() >= needed:
        return Proposal(kind=kind, why=f"no table has the name and the columns of {name}")
    sources: dict[str, Source] = {}
    for field_name, column in columns.items():
        if field_name in options.constants:
            sources[field_name] = Source(constant=options.constants[field_name], why="no such column")
        elif column in table.columns:
            sources[field_name] = Source(column=column, values=options.values.get(field_name, {}), why="known")
    return Proposal(
        kind=kind,
        why=f"recognised: {name}",
        table=table,
        sources=sources,
        where=options.where,
        content=options.content if isinstance(options, MessagesOptions) else "auto",
    )
