"""The version, where the build looks for it and every layer may."""

__version__ = "0.1.0"
