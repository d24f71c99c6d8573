"""The errors that end a script with one line instead of a traceback."""


class UserError(Exception):
    """Something in the command, a file or the machine that the user can put right: exit code 2."""

    exit_code = 2


class TrainingError(Exception):
    """Training cannot go on, as with a loss that is not finite: exit code 1."""

    exit_code = 1


class WriteError(Exception):
    """A file cannot be written, as on a full disk; what was there before stays: exit code 1."""

    exit_code = 1


class Interrupted(Exception):
    """Stopped from outside, with everything saved. The exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def reason(error: BaseException) -> str:
    """What an error says, on one line that is not too long."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = " ".join(said.split())
    return line if len(line) <= 160 else line[:159] + "…"
