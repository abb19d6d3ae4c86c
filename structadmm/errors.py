"""The exceptions of this project and the exit status each one ends a command with."""


class StructadmmError(Exception):
    """Root of every error raised on purpose. Its message is one line that a user can act on."""

    exit_status = 1


class UserError(StructadmmError):
    """A mistake in what the user gave: says what was expected, what arrived and what to do."""

    exit_status = 2


class InvariantError(StructadmmError):
    """A promise of this project was broken: two things proven equal differ, or a plan is inconsistent."""

    exit_status = 1
