"""Live updates from an existing Postgres or SQLite database to STOMP clients over WebSocket."""

__version__ = "0.1.0"
