"""Published for tests of this project and of others: a STOMP client, a transport in memory, suites for back ends.

``client.connect(host, port)`` gives a ``StompClient`` after CONNECTED: ``subscribe``, ``receive`` the next frame,
``acknowledge``, ``disconnect``. It speaks over any Trio stream, starts no task and reads only when it is asked.
"""
