"""Training heads from cached features against the frozen image tower that made them: images a second."""

import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Variant, compare, positive, start
from benchmarks.report import report
from opensiglip.data.example import Example
from opensiglip.data.loader import Steps, to_device
from opensiglip.data.sources.registry import open_source
from opensiglip.evaluation.encode import readable_examples
from opensiglip.models.model import Model
from opensiglip.training.build import build
from opensiglip.training.resolve import resolve
from opensiglip.training.stop import Stop
from opensiglip.types import TowerStates

TOWER, CACHED = "image tower alone", "opensiglip align, from features"


def bench(
    vision: str,
    text: str,
    data: str,
    head: Literal["map", "mlp", "linear"] = "mlp",
    captions: int = 1,
    length: int = 40,
    batch_size: int = 256,
    count: int = 32,
    rounds: int = 5,
    device: str = "auto",
    features: Path = Path("runs/features"),
    out: Path = Path("runs/bench"),
) -> None:
    """A step of `align` from features, reading included, against the image tower on pixels at hand.

    Where the features are missing they are written first. The gap beside it: how far rounding to bf16 moves an
    embedding, as one minus the cosine, the largest of `count` images.

    Args:
        vision: folder or hub id of the image tower.
        text: folder or hub id of the sentence encoder.
        data: images with captions.
        head: of the images.
        captions: of each image at a step.
        length: tokens of a text.
        batch_size: of the step.
        count: images that the tower encodes at once.
        rounds: of each variant, in turn; the median counts.
        device: auto, cpu or cuda.
        features: folder of cached features.
        out: folder for the JSON and the plot.
    """
    positive(captions=captions, length=length, batch_size=batch_size, count=count, rounds=rounds)
    place = start(device)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        keywords = {"vision": vision, "text": text, "data": data, "out": Path(folder) / "run", "features": features}
        sizes = {"head": head, "captions": captions, "length": length, "batch_size": batch_size, "steps": 10_000}
        job = resolve("align", keywords | sizes | {"held_out": 0, "workers": 0})
        loop = build(job, stack).loop
        loop.stop = Stop()
        loop.activate(0)
        wrapped, steps, numbers = loop.wrap(), Steps(loop.plan), itertools.count()
        frame, model = job.recipe.frame, loop.learner.model
        examples = list(readable_examples(open_source(data, languages=None, pixels=frame.pixels), count))
        images = [frame.apply(Example(example.image, ()), None)[0] for example in examples]
        pixels = to_device(frame.batch(images), place)["image"]

        def tower() -> Tensor:
            with torch.no_grad(), loop.autocast():
                found: Tensor = model.vision.read(pixels)
            return found

        variants = [
            Variant(TOWER, tower, items=len(pixels)),
            Variant(
                CACHED,
                lambda: loop.train_step(wrapped, steps[next(numbers)]),
                items=batch_size,
                facts={"gap": rounding(model, pixels)},
            ),
        ]
        rows = compare(f"{head}, {captions} captions", variants, TOWER, place, rounds, torch.float32)
    for row in rows:
        assert row.per_second is not None and rows[0].per_second is not None
        row.facts["images"] = f"{row.per_second / rows[0].per_second:.1f}x"
    report("features", rows, out, place)


@torch.no_grad()
def rounding(model: Model, pixels: Tensor) -> float:
    """1 - cosine of an embedding from states in bf16 with that from the states as they are, the largest."""
    states = model.vision.read(pixels)
    whole, rounded = (model.vision(TowerStates(x)).pooled.double() for x in (states, states.bfloat16()))
    return float((1 - F.cosine_similarity(whole, rounded)).max())
