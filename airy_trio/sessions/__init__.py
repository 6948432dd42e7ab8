"""Sessions: one for each connection, from the accepted socket to its disconnect reason."""
