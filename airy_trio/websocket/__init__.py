"""The edge: sockets, TLS, framed streams, HTTP requests and admission."""
