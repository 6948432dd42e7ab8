"""Published test kit, for tests of this project and of others.

``client`` is a STOMP client over WebSocket, and ``event_store`` checks an event store.
"""
