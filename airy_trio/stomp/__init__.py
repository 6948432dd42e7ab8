"""The server side of STOMP 1.0, 1.1 and 1.2, sans-IO: octets in, requests out; answers in, octets out."""
