"""How a command ended, said once though every rank may have it; the launcher of ranks reads with which exit codes."""

import hashlib
import os
import sys
from pathlib import Path

PROGRAM = "opensiglip"


def say(sentence: str, code: int) -> None:
    """Print the sentence that a command ends with to stderr, with the rank of an error if that is not the first."""
    rank, file = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None:  # torchrun's folder of this attempt, that the ranks of a machine share
        mark = hashlib.sha256(sentence.encode(errors="backslashreplace")).hexdigest()[:16]
        try:
            (Path(file).parents[1] / f"{PROGRAM}-{mark}.{code}").touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass
    origin = f" (rank {rank})" if code == 2 and rank != "0" else ""  # a stop is of all
    print(f"{PROGRAM}{origin}: {sentence}", file=sys.stderr, flush=True)


def codes_said(folder: Path) -> list[int]:
    """The exit codes of sentences that ranks have said, whose attempts torchrun keeps in `folder`."""
    return [int(mark.suffix[1:]) for mark in folder.rglob(f"{PROGRAM}-*")]
