"""The schemas that are recognised as a whole: our default tables, Airy Core's records, and Chatwoot.

Names and types alone do not say what Chatwoot's numbers mean. Its mapping and that of Airy Core are the examples in
``config/``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import field, frozen

from airy_trio.capture.feed import Kind
from airy_trio.capture.mapping import FIELDS, KINDS, MessagesOptions, Scalar, TablesOptions
from airy_trio.init.catalogue import FoundTable
from airy_trio.init.columns import Source
from airy_trio.init.proposal import Proposal, Proposals
from airy_trio.settings import load


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
