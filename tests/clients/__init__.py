"""Real STOMP clients of others, as programs that print what they receive."""
