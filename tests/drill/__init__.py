"""Drills: complete servers under load, while everything that can die or freeze does so again and again."""
