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
from opensiglip.training.build import build
from opensiglip.training.loop import Loop
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
    languages: str | None = None,
    length: int = 40,
    batch_size: int = 256,
    count: int = 32,
    rounds: int = 5,
    device: str = "auto",
    features: Path = Path("runs/features"),
    out: Path = Path("runs/bench"),
) -> None:
    """A step of `align` from cached features, including reading, against the image tower on decoded pixels.

    Where the features are missing they are written first. The gap beside it: how far the cache's precision moves an
    embedding, as one minus the cosine with float32 throughout, the largest of `count` images.

    Args:
        vision: folder or hub id of the image tower.
        text: folder or hub id of the sentence encoder.
        data: images with captions.
        head: image head.
        captions: captions per image and step.
        languages: languages of the captions, such as en; by default all.
        length: tokens per text.
        batch_size: batch size of the step.
        count: batch size of the tower.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        features: folder for cached features.
        out: folder for the JSON and the plot.
    """
    positive(captions=captions, length=length, batch_size=batch_size, count=count, rounds=rounds)
    place = start(device)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        keywords = {"vision": vision, "text": text, "data": data, "out": Path(folder) / "run", "features": features}
        sizes = {"head": head, "captions": captions, "length": length, "batch_size": batch_size, "steps": 10_000}
        rest = {"languages": languages, "held_out": 0, "workers": 0}
        job = resolve("align", {**keywords, **sizes, **rest})
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
                facts={"gap": gap(loop, pixels)},
            ),
        ]
        rows = compare(f"{head}, {captions} captions", variants, TOWER, place, rounds, torch.float32)
    for row in rows:
        assert row.per_second is not None and rows[0].per_second is not None
        row.facts["images"] = f"{row.per_second / rows[0].per_second:.1f}x"
    report("features", rows, out, place)


@torch.no_grad()
def gap(loop: Loop, pixels: Tensor) -> float:
    """1 - cosine of an embedding from states as the cache holds them with one in float32 throughout, the largest."""
    vision = loop.learner.model.vision
    with loop.autocast():
        states = vision.read(pixels)
    kept = states.bfloat16() if loop.precision == "bf16" else states
    whole, read = (vision(x).pooled.double() for x in (pixels, TowerStates(kept)))
    return float((1 - F.cosine_similarity(whole, read)).max().clamp(min=0))  # a cosine may round to above 1
