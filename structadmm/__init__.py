"""What every stage shares: errors, safe file writing, progress, and the traced network graph."""

__version__ = "0.1.0"
