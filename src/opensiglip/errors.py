"""The one error a user meets, a sentence that names the file, field or flag and the mend; and a stop as asked for."""

LETTERS = 300  # of what a library says
HEAD, TAIL = 1400, 500  # letters of a sentence with a longer name in it than anyone reads


class UserError(Exception):
    """Bad input. The command line prints the message as one sentence and exits with code 2; Python sees it raised.

    Names in files are somebody else's and may have any length, so the middle of a long message is left out.
    """

    def __init__(self, message: str = "") -> None:
        long = len(message) > HEAD + TAIL + 1
        super().__init__(f"{message[:HEAD]}…{message[-TAIL:]}" if long else message)


class EmptySplit(UserError):
    """A source has no example in the split that was asked for; it may have other splits."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop and has. The command line says where it goes on from, and exits with `code`."""

    code = 75  # sysexits.h's EX_TEMPFAIL, by which schedulers queue a job again


def first_line(error: Exception) -> str:
    """What an exception says, cut to its first line: the files that it speaks of are somebody else's."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:LETTERS]
