"""The event store in Redis."""
