"""The client for programs, tested against real servers."""
