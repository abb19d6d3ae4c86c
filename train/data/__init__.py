"""Data sets by name, or by `module:callable`."""
