"""What a person on call looks at, on a port of its own: does the server live, is it ready, what are its figures."""
