"""Drills: the whole route under load, while everything that can die or freeze does so again and again."""
