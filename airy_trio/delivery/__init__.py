"""Delivery: a client is a cursor into the log; the fan-out and the send tasks move it."""
