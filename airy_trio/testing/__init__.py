"""Published test kit, for tests of this project and of others.

``client`` is a STOMP client over WebSocket, ``transport`` has transports in memory and over any Trio stream, ``feed``
is a change feed in memory, and ``event_store`` checks an event store.
"""
