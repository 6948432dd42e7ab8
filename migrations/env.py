"""Runs one stream of migrations on the connection that ``airy_trio.migrate`` hands over, in its transaction.

There are two streams, each with a version table of its own: ``changes`` beside the application's tables, ``log``
where the event store keeps its events, which may be another database.
"""

from alembic import context

config = context.config
stream = config.attributes["stream"]
names = config.attributes["names"]

context.configure(
    connection=config.attributes["connection"],
    version_table=names.bare(f"{stream}_version"),
    version_table_schema=names.table_schema,
)
with context.begin_transaction():
    context.run_migrations()
