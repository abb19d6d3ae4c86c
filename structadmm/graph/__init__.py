"""The traced graph of a network: coupled channels, counts, and the module that executes it."""
