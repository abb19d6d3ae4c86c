"""Where bundles run: the C runner, the targets it is carried to, and measurement."""
