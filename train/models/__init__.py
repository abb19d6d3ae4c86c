"""The networks that come with the project, each with a `width`."""
