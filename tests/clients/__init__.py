"""STOMP clients of other projects, as programs that print what they receive."""
