"""Drills: complete servers under load, while processes are killed and frozen repeatedly."""
