"""To whom: one session per client, its subscriptions as cursors into the log, and the bytes that leave for it."""
