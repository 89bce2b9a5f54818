"""Libraries that talk too much on a command line."""

from transformers.utils import logging


def quiet_libraries() -> None:
    """Silence transformers' warnings on its own default configs, and its progress bars among ours."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
