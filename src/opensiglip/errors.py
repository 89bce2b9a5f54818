"""The one error a user meets: a sentence that names the file, field or flag and the mend."""


class UserError(Exception):
    """Bad input. The command line prints the message as one sentence and exits with code 2; Python sees it raised."""


class EmptySplit(UserError):
    """A source has no example in the split that was asked for; it may have other splits."""
