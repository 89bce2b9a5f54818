"""Evaluation's embeddings against the encoder alone: what reading and framing the examples costs."""

from pathlib import Path

import torch

from benchmarks.measure import Variant, compare, positive, start
from benchmarks.report import report
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.encode import BATCH, encode_examples
from opensiglip.inference.predictor import Predictor
from opensiglip.models.model import Model
from opensiglip.recipes import siglip


def bench(
    data: str = "scenes",
    size: str = "B/16",
    resolution: int = 224,
    count: int = BATCH,
    rounds: int = 5,
    device: str = "auto",
    out: Path = Path("runs/bench"),
) -> None:
    """From a source to embeddings, as in every task of `opensiglip eval`, against the encoder on decoded pixels.

    Args:
        data: source to embed.
        size: size of the randomly initialised encoder.
        resolution: side of the images in pixels.
        count: number of images.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        out: folder for the JSON and the plot.
    """
    positive(resolution=resolution, count=count, rounds=rounds)
    place = start(device)
    architecture = siglip(size=size, resolution=resolution).architecture
    pipeline = TextPipeline.train(["a fox"])
    model = Model.new(architecture, len(pipeline)).to(place).eval()
    subject = Predictor(Pretrained.of(model, pipeline, name=size))
    source = open_source(data, split="val", pixels=resolution)
    pixels = torch.stack([example.image for example in encode_examples(subject, source, count, tokens=False).examples])

    def alone() -> None:
        for some in pixels.split(BATCH):
            subject.encode(some)

    variants = [
        Variant("encoder alone", alone, items=count),
        Variant(
            "opensiglip encode_examples", lambda: encode_examples(subject, source, count, tokens=False), items=count
        ),
    ]
    rows = compare(f"{size} {resolution} px", variants, "encoder alone", place, rounds, torch.float32)
    report("embed", rows, out, place)
