"""Records, statistics and the report."""
