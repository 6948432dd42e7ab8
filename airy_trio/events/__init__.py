"""What a change means to a client: the four events of the wire, their destinations and their exact JSON."""
