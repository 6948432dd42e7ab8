"""The documentation: its pages agree with the program, and their examples work."""
