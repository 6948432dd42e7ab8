"""Published for tests of this project and of others: a STOMP client, a transport in memory, suites for back ends.

``client.connect(host, port)`` returns a ``StompClient`` after CONNECTED, with ``subscribe``, ``receive``,
``acknowledge`` and ``disconnect``. It works over any Trio stream, starts no task, and reads only in ``receive``.
"""
