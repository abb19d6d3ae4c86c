"""Configuration, run directories and the command line: the only package that knows all stages."""
