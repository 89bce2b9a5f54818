"""`UserError`, one sentence that names the file, field or flag and the fix; and a requested stop."""

LETTERS = 300  # limit of a library's message
HEAD, TAIL = 1400, 500  # characters kept at the start and the end of a long message


class UserError(Exception):
    """Bad input. The message is one sentence; the command line prints it and exits with code 2.

    Names in files are untrusted and may have any length, so the middle of a long message is left out.
    """

    def __init__(self, message: str = "") -> None:
        long = len(message) > HEAD + TAIL + 1
        super().__init__(f"{message[:HEAD]}…{message[-TAIL:]}" if long else message)


class EmptySplit(UserError):
    """A source has no example in the requested split; it may have other splits."""


class Stopped(KeyboardInterrupt):
    """A run has stopped on request. The command line prints the checkpoint to resume from and exits with `code`."""

    code = 75  # EX_TEMPFAIL of sysexits.h, on which schedulers requeue a job


def first_line(error: Exception) -> str:
    """The first line of an exception's message, cut: the files that it quotes are untrusted."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:LETTERS]
