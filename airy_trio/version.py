"""The version, for the build and for every package."""

__version__ = "0.1.0"
