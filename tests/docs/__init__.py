"""The documentation: that its pages say what the program does, and that what they show can be run."""
