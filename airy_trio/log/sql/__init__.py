"""The event store in SQL: Postgres, or an SQLite file of its own."""
