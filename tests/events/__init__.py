"""Tests of airy_trio.events."""
