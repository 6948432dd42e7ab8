"""Run one stream of migrations on the connection that ``airy_trio.migrate`` passes, in its transaction.

There are two streams, each with a version table: ``changes`` in the application's database, and ``log`` in the database
of the event store, which may be another one.
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
