"""A run evaluated on held-out examples: while it trains, and at its end."""

import time
from dataclasses import dataclass, field
from typing import Any

from opensiglip.data.example import Source
from opensiglip.evaluation.benchmark import Context, Sample
from opensiglip.evaluation.encode import encode_examples
from opensiglip.evaluation.run import run_benchmarks
from opensiglip.inference.predictor import Predictor
from opensiglip.training.remembered import Memory, remembering

QUICK = ("grounding", "retrieval", "answers")  # the quick ones; `opensiglip eval` has them all


@dataclass(frozen=True)
class HeldOut:
    """What to evaluate on: the first `count` examples of a held-out source; training data for blind baselines."""

    source: Source
    count: int
    training: Source
    memory: Memory = field(default_factory=Memory)  # what frozen towers made of it
    samples: dict[str, list[Sample]] = field(default_factory=dict)  # of the last evaluation, by benchmark

    def of(self, predictor: Predictor) -> dict[str, Any]:
        """Source, split, number of examples, seconds; and the figures of each benchmark that the model can do."""
        began, predictor = time.perf_counter(), remembering(predictor, self.memory)
        examples = encode_examples(predictor, self.source, self.count)
        results, _ = run_benchmarks(predictor, examples, QUICK, Context(self.training, trust=True))
        self.samples.clear()
        self.samples.update({name: result.samples for name, result in results.items()})
        return {
            "source": self.source.name,
            "split": "val",
            "examples": len(examples.examples),
            **{name: result.metrics for name, result in results.items()},
            "seconds": round(time.perf_counter() - began, 1),
        }

    def row(self, predictor: Predictor) -> dict[str, float]:
        """Figures for metrics.jsonl, eval/TASK/NAME: those with an interval. Leaves the model in evaluation mode."""
        predictor.pretrained.model.eval()
        findings = self.of(predictor)
        return {
            f"eval/{benchmark}/{name}": value
            for benchmark in QUICK
            for name, value in findings.get(benchmark, {}).items()
            if f"{name}_ci95" in findings[benchmark]
        }
