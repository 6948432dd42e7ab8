"""The event log: positions, the stores behind one port, the newest events in memory, and the recorder."""
