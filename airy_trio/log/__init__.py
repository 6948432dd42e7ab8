"""Where events are kept, in order: positions, the stores behind one port, the tail, and who writes."""
