"""A training step with freed memory kept, as `train` does on CPUs, against the allocator's own way."""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.measure import Sample, Variant, positive, rows, start
from benchmarks.report import report

PEER = "glibc default"


def bench(steps: int = 6, rounds: int = 2, out: Path = Path("runs/bench")) -> None:
    """A training step on CPU that keeps freed memory (as `train` does) against glibc's default, in separate processes.

    Args:
        steps: timed steps per process, after three of warm-up; the median is reported.
        rounds: processes per variant.
        out: folder for the JSON and the plot.
    """
    positive(steps=steps, rounds=rounds)
    device = start("cpu")
    samples: dict[str, list[Sample]] = {PEER: [], "opensiglip": []}
    for _ in range(rounds):
        for name, taken in samples.items():
            code = f"from benchmarks.memory import steps; steps({name == 'opensiglip'}, {steps})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            taken += [(seconds, None) for seconds in json.loads(done.stdout.splitlines()[-1])]
    variants = [Variant(name, lambda: None) for name in samples]
    report("memory", rows("step", variants, PEER, samples), out, device)


def steps(keep: bool, count: int) -> None:
    """Print the CPU seconds of so many steps of siglip2's first stage at size tiny, 64 images, bf16."""
    from opensiglip.data.loader import DataPlan, Steps, to_device
    from opensiglip.data.sources.registry import open_source
    from opensiglip.data.text import TextPipeline
    from opensiglip.recipes import siglip2
    from opensiglip.training.learner import Learner, denominators
    from opensiglip.training.memory import keep_freed_memory

    device = start("cpu")
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    recipe, source = siglip2(size="tiny"), open_source("scenes", pixels=64)
    pipeline = TextPipeline.train(source.texts())
    plan = DataPlan(
        sources=[source],
        frame=recipe.frame,
        fields=recipe.fields,
        pipeline=pipeline,
        batch_size=64,
        seed=0,
        steps=100,
    )
    batch = to_device(Steps(plan)[0].parts[0], device)
    learner = Learner.new(recipe, pipeline)
    learner.activate(0.0)
    live, times = denominators(learner, [batch]).float(), []
    for _ in range(3 + count):
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss = learner(batch, live).losses["loss"]
        loss.backward()
        learner.zero_grad()
        times.append(time.process_time() - began)
    print(json.dumps(times[3:]))
