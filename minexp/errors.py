"""What can go wrong, in three words.

Every message says what was wrong, what was expected, what to do.
"""


class MinexpError(Exception):
    """Anything minexp reports on purpose; the command line prints it in one line."""


class InputError(MinexpError):
    """The caller's input cannot be used: a file, an option, a name (exit code 2)."""


class WeightsError(InputError):
    """A model's weights are missing or are not the recorded ones (exit code 2)."""


class RunError(MinexpError):
    """The input was fine, the run failed: a full disk, a failed notebook (exit code 1)."""
