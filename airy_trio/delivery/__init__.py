"""Delivery: a client is a cursor into the log, which the fan-out and the send tasks move."""
