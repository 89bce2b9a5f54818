"""Do held-out images stand in the training data? A note of an evaluation says so."""

from collections.abc import Sequence
from pathlib import Path

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.checkpoints.seen_images import read_seen
from opensiglip.data.example import Example
from opensiglip.data.seen import image_hash, words
from opensiglip.data.stats.duplicates import among


def leaks(model: str, examples: Sequence[Example]) -> list[str]:
    """A sentence where framed `examples` look like images that the run of `model` has read.

    `model` as it was opened: a run, its model/ or a checkpoint of it. Nothing of models of others, whose folders say
    nothing of what they were trained on.
    """
    run = RunFolder.around(Path(model))
    known = words([]) if run is None else read_seen(run.seen)
    if not len(known):
        return []
    found = int(among(words([image_hash(example, example.image) for example in examples]), known).sum())
    if not found:
        return []
    return [
        f"{found} of {len(examples)} held-out images look like images that the run was trained on, so the figures are "
        "too high; `opensiglip data dedup TRAIN --against HELDOUT` finds them, and writes weights that leave them out."
    ]
