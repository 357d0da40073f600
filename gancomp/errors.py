"""The errors that gancomp raises for its user's mistakes and his machine's troubles.

Each message is one line that names the argument, the value and what is allowed. The command line prints it without a
traceback and exits with ``exit_code``; library users catch :class:`GancompError` or one of its children.
"""


class GancompError(Exception):
    """Base of every error whose message is meant for the user."""

    exit_code = 2


class ConfigError(GancompError, ValueError):
    """A setting is wrong: its name, its value and what is allowed are in the message."""


class NotFiniteError(ConfigError):
    """Weights or images contain values that are not finite; a search goes on with its next candidate."""


class DataError(GancompError):
    """A data folder or an image cannot be used; the message names the path."""


class CheckpointError(GancompError):
    """A weight file cannot be used; the message names the path and what was expected."""


class RunError(GancompError):
    """A run folder cannot be continued (other settings, another program, damaged state)."""


class BackendError(GancompError, RuntimeError):
    """A named kernel backend cannot run the call; the message gives the reason."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's exception says, or its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
