"""What a change means to a client: the events of the wire, their destinations and their exact JSON."""
