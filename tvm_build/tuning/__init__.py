"""Schedules chosen by measurement: tasks, their design space, the search, and the database of what was found."""
