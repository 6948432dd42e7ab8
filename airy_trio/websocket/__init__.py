"""The edge: sockets, TLS, framed streams, HTTP requests, event streams and admission."""
