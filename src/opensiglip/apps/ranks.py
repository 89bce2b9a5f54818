"""`train --ranks N`: this machine's ranks, started by torchrun's own launcher; how they ended is one sentence."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from opensiglip.apps.said import codes_said
from opensiglip.errors import Stopped, UserError

SAID = (2, 75)  # exit codes of ranks that have said themselves why they ended: a sentence, and a stop as asked for
GRACE = 300  # seconds that ranks have to end a step and save it when the launcher is asked to stop
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # handed on to the ranks


def launch(ranks: int, words: Sequence[str]) -> int:
    """Run `opensiglip WORDS` as `ranks` processes of this machine; returns the exit code.

    If one of them fails the others are told to end, and killed where they have not after torch's 30 s. Raises UserError
    naming the rank and the reason where it could not say so itself, and Stopped where no rank could after a signal.
    """
    devices = torch.accelerator.device_count()
    if torch.accelerator.is_available() and ranks > devices:
        raise UserError(f"--ranks {ranks}, but this machine has {devices} accelerators; give at most {devices}.")
    if not torch.accelerator.is_available():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    logging.disable(logging.ERROR)  # this process does nothing else, and torch tells of every rank that it ends
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            signals_to_handle=SIGNALS,
            shutdown_timeout=GRACE,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "opensiglip", *words)
        except ChildFailedError as error:
            first = min(error.failures.values(), key=cause)
            if first.exitcode in SAID:
                return first.exitcode
            rank = next(rank for rank, failure in error.failures.items() if failure is first)
            raise UserError(sentence(rank, ranks, first)) from None
        except SignalException as stop:
            if codes := codes_said(Path(folder)):
                return min(codes)  # an error before a stop
            name = signal.Signals(stop.sigval).name
            raise Stopped(f"stopped by {name} before a step; start it again, with --resume if it has saved.") from None
    return 0


def cause(failure: ProcessFailure) -> tuple[bool, bool, int]:
    """What failures are sorted by: ranks that the launcher has ended come last, before them those that said why."""
    return failure.exitcode == -signal.SIGTERM, failure.exitcode in SAID, failure.timestamp


def sentence(rank: int, ranks: int, failure: ProcessFailure) -> str:
    """What became of a rank, and of the run."""
    if failure.exitcode < 0:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
        why = ", as the system does where memory runs out" if failure.exitcode == -signal.SIGKILL else ""
    else:
        how, why = f"ended with exit code {failure.exitcode}", "; its traceback stands above"
    return f"rank {rank} of {ranks} {how}{why}; the others were ended, and --resume continues from the last checkpoint."
