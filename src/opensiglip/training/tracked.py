"""What trackers get at an evaluation beside its figures: a table of them, and pictures of hits and misses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opensiglip.evaluation.benchmark import Sample
from opensiglip.reports.drawing import coloured, enlarged

EACH = 6  # pictures of a benchmark
SIDE = 256  # their longer side, pixels
PICTURES = ("tensorboard", "wandb", "swanlab")  # Accelerate's trackers that take arrays of pictures


def show(
    trackers: Sequence[Any], samples: Mapping[str, Sequence[Sample]], figures: Mapping[str, float], step: int
) -> None:
    """Send the figures as a table, and the first samples of each benchmark with their boxes, to trackers with room."""
    pictures = {
        f"eval/{benchmark}/{number} {'hit' if sample.correct else 'miss'}": picture(sample)[None]
        for benchmark, some in samples.items()
        for number, sample in enumerate(some[:EACH])
    }
    table = [[name.removeprefix("eval/"), value] for name, value in figures.items()]
    for tracker in trackers:
        if tracker.name in PICTURES and pictures:
            tracker.log_images(pictures, step=step, **{"dataformats": "NHWC"} if tracker.name == "tensorboard" else {})
        if tracker.name == "tensorboard":
            lines = "\n".join(f"| {name} | {value:.4f} |" for name, value in table)
            tracker.tracker.add_text("eval/figures", f"| figure | value |\n| --- | --- |\n{lines}", global_step=step)
        elif tracker.name == "wandb":
            tracker.log_table("eval/figures", columns=["figure", "value"], data=table, step=step)


def picture(sample: Sample) -> np.ndarray:
    """[H, W, 3] uint8: the image, with the target's and the model's boxes."""
    return np.asarray(enlarged(sample.image, coloured(sample.target_boxes, sample.predicted_boxes), SIDE))
