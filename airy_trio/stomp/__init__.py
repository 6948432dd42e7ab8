"""STOMP 1.0, 1.1 and 1.2 as the server speaks it: octets in, requests out, and back. No I/O, no clock, no Airy."""
