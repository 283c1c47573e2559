"""The two kinds of error a user sees, with the exit code of each.

Everything else that is raised is a bug of ours and keeps its traceback.
"""


class InputError(ValueError):
    """What a person wrote is wrong: one message with rule, value and remedy; exit code 2."""

    exit_code = 2


class SurroundingsError(RuntimeError):
    """The world failed (disk full, server gone, node lost); state is saved; exit code 3."""

    exit_code = 3


class OtherNumericsError(SurroundingsError):
    """A training stopped halfway would go on where the last bits come out differently; it waits for a decision."""
