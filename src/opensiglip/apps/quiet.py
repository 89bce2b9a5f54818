"""Libraries that talk too much on a command line."""

verbose = False  # of the whole process; the command line's --verbose


def quiet_libraries() -> None:
    """Silence transformers' warnings on its own default configs, and its progress bars among ours."""
    from transformers.utils import logging  # not for `--help`

    if verbose:
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
