"""Whether the steps of `opensiglip bench gpu` would wait for their data: JPEGs to batches, in all data processes."""

import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from benchmarks.gpu_setting import OURS, Found, Setting
from benchmarks.gpu_steps import Paces
from benchmarks.input import MADE, made_photographs
from benchmarks.measure import Sample, Variant, rows
from benchmarks.shards import write_folder
from opensiglip.data.loader import DataPlan, StepBatch, loader
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.recipes import build_recipe, find_recipe

STEPS = 1000  # of the run that batches are made for
LAST_STAGE = 800  # of its steps: the first whose batches have all of SigLIP 2's views


def loaded(setting: Setting, paces: Paces, found: Found) -> None:
    """Batches of SigLIP, and of SigLIP 2's last stage, against the pace of their steps."""
    workers = max(1, (os.cpu_count() or 1) - 1) if setting.workers is None else setting.workers
    each, samples = max(1, workers), dict[str, list[Sample]]()
    with tempfile.TemporaryDirectory() as folder:
        pictures = made_photographs(Path(folder), min(MADE, setting.images))
        write_folder(Path(folder) / "source", [path.read_bytes() for path in pictures], len(pictures))
        for name, first in (("siglip", 0), ("siglip2", LAST_STAGE)):
            plan = plan_of(name, Path(folder) / "source", setting)
            taken = loader(plan, first, STEPS, workers, pin=setting.place.type == "cuda")
            for _ in islice(taken, each):  # processes start, and each makes a batch
                pass
            samples[f"{OURS} {name}"] = [timed(taken, each) for _ in range(setting.rounds)]
            taken.close()
    variants = [Variant(name, lambda: None, items=each * setting.images) for name in samples]
    found.rows += rows(f"loader, data processes: {workers}", variants, variants[0].name, samples)
    for row in found.rows:
        name = row.variant.removeprefix(f"{OURS} ")
        step = paces.get(name)
        found.values[name] = "the step was not measured" if step is None else (row.per_second or 0.0) / step


def plan_of(name: str, folder: Path, setting: Setting) -> DataPlan:
    """Steps of a recipe of the first size, over images with a text each."""
    recipe, source = build_recipe(find_recipe(name), {"size": setting.sizes[0]}), open_source(str(folder))
    pipeline = TextPipeline.train(["a picture of number 7, on a ground"] * 9)
    return DataPlan(
        sources=[source],
        frame=recipe.frame,
        fields=recipe.fields,
        pipeline=pipeline,
        batch_size=setting.images,
        seed=0,
        steps=STEPS,
    )


def timed(batches: Iterator[StepBatch], count: int) -> Sample:
    """Wall seconds until so many more batches are there, and no memory."""
    began = time.perf_counter()
    for _ in islice(batches, count):
        pass
    return time.perf_counter() - began, None
