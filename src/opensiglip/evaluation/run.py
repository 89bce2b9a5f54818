"""Every benchmark by name, and several of them run on one model and one source."""

import inspect
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opensiglip.data.example import Source
from opensiglip.data.sources.registry import open_source
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import (
    DEFAULT_PROBE,
    Benchmark,
    BenchmarkResult,
    Context,
    NotApplicable,
    ProbeConfig,
)
from opensiglip.evaluation.benchmarks.captioning import captioning
from opensiglip.evaluation.benchmarks.compositionality import compositionality
from opensiglip.evaluation.benchmarks.decoder_probe import decoder_probe
from opensiglip.evaluation.benchmarks.fairness import fairness
from opensiglip.evaluation.benchmarks.grounded_captioning import grounded_captioning
from opensiglip.evaluation.benchmarks.grounding import grounding
from opensiglip.evaluation.benchmarks.open_vocabulary import open_vocabulary
from opensiglip.evaluation.benchmarks.probes import probes
from opensiglip.evaluation.benchmarks.retrieval import retrieval
from opensiglip.evaluation.benchmarks.text_tasks import text_tasks
from opensiglip.evaluation.benchmarks.zero_shot import zero_shot
from opensiglip.evaluation.class_names import key
from opensiglip.evaluation.encode import EncodedExamples, encode_examples
from opensiglip.evaluation.labels import class_names, label
from opensiglip.evaluation.leaks import leaks
from opensiglip.evaluation.metrics.intervals import split_values
from opensiglip.inference.predictor import Predictor, load
from opensiglip.inference.rerank import check_judge

COUNT = 500  # examples judged

BENCHMARKS: dict[str, Benchmark] = {
    "retrieval": retrieval,
    "zeroshot": zero_shot,
    "grounding": grounding,
    "grounded_captioning": grounded_captioning,
    "captioning": captioning,
    "answers": text_tasks,
    "compositionality": compositionality,
    "probes": probes,
    "openvocab": open_vocabulary,
    "fairness": fairness,
    "decoder_probe": decoder_probe,
}
BY_NAME = ("decoder_probe", "fairness")  # asked for by name alone: hours the one, meant for certain images the other


@dataclass(frozen=True)
class Evaluation:
    """`record` is what evaluation.json holds; `results`, by benchmark, also have the samples that its page shows."""

    record: dict[str, Any]
    results: dict[str, BenchmarkResult]
    about: dict[str, str]  # by benchmark, what it measures


def run_evaluation(
    model: str | Path | Predictor,
    data: str,
    benchmarks: Sequence[str] = (),
    *,
    split: str = "val",
    count: int = COUNT,
    train_count: int = 2000,
    languages: Sequence[str] | None = None,
    seed: int = 0,
    probe: ProbeConfig = DEFAULT_PROBE,
    rerank: str | Path | None = None,
    raw_class_names: bool = False,
    quiet: bool = False,
    trust: bool = False,
) -> Evaluation:
    """Judge a model on `count` examples of a source, spread over it; the same call gives the same metrics.

    `model` is what `opensiglip.load` takes or gave; `benchmarks` are names of `BENCHMARKS`, none for all but `BY_NAME`.
    Probes are fitted to `train_count` examples of the split train. `raw_class_names`: prompts take class names as they
    stand. `rerank`: a model that chooses captions among a beam's; captioning has those, too (inference/rerank.py).
    `trust`: open the Python files of its own tasks that the model names; give it for what you trained yourself.
    Raises UserError on bad input, and where none of the benchmarks applies.
    """
    wanted = list(dict.fromkeys(benchmarks or (name for name in BENCHMARKS if name not in BY_NAME)))
    check_names(wanted)
    if count < 1 or train_count < 1 or probe.steps < 1:
        raise UserError("--count, --train-count and --probe-steps are at least 1.")
    if not probe.tasks or not set(probe.tasks) <= set(DEFAULT_PROBE.tasks):
        raise UserError(
            f"--probe-tasks {','.join(probe.tasks)}: a probe learns some of {', '.join(DEFAULT_PROBE.tasks)}."
        )
    if rerank is not None and not {"captioning", "decoder_probe"} & set(wanted):
        raise UserError("--rerank chooses captions, and no task writes any; leave it out, or name captioning.")
    judge = None if rerank is None else load(rerank)
    if judge is not None:
        check_judge(judge)
    subject = load(model) if isinstance(model, str | Path) else model
    side = subject.frame.pixels
    source = open_source(data, split=split, languages=languages, pixels=side)
    training = None
    if split != "train":
        try:
            training = open_source(data, split="train", languages=languages, pixels=side)
        except UserError:  # a folder of nothing but held-out rows: probes say so themselves
            training = None
    chosen = None if languages is None or "all" in languages else tuple(languages)
    context = Context(training, chosen, seed, train_count, raw_class_names, quiet, trust, probe, judge)
    examples = encode_examples(subject, source, count, quiet=quiet)
    results, left_out = run_benchmarks(subject, examples, wanted, context)
    if not results:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()) + "; name other --tasks.")
    notes = leaks(subject.name, examples.examples)
    notes += [f"{name}: {note}" for name, result in results.items() for note in result.notes]
    if {"zeroshot", "probes"} & set(results):
        notes += missing_classes(source, examples, "--count")
        if training is not None and "probes" in results:
            notes += missing_classes(training, context.training_examples(subject), "--train-count")
    record: dict[str, Any] = {
        "model": subject.name,
        "data": data,
        "split": split,
        "examples": len(examples.examples),
        "frame": str(subject.frame),
        "seed": seed,
        "command": shlex.join(
            ["opensiglip", "eval", subject.name, "--data", data, "--tasks", ",".join(wanted), "--split", split]
            + ["--count", str(count), "--train-count", str(train_count), "--seed", str(seed)]
            + (["--languages", ",".join(languages)] if languages else [])
            + (["--raw-class-names"] if raw_class_names else [])
            + (["--rerank", str(rerank)] if rerank is not None else [])
            + (["--probe-steps", str(probe.steps)] if probe.steps != DEFAULT_PROBE.steps else [])
            + (["--probe-tasks", ",".join(probe.tasks)] if probe.tasks != DEFAULT_PROBE.tasks else [])
        ),
        "tasks": {name: result.metrics for name, result in results.items()},
        "values": {name: result.values for name, result in results.items()},
        "left_out": left_out,
    } | ({"notes": notes} if notes else {})
    return Evaluation(record, results, {name: about(BENCHMARKS[name]) for name in results})


def run_benchmarks(
    model: Predictor, examples: EncodedExamples, names: Sequence[str], context: Context
) -> tuple[dict[str, BenchmarkResult], dict[str, str]]:
    """Results by benchmark, and by benchmark why it was left out."""
    results: dict[str, BenchmarkResult] = {}
    left_out: dict[str, str] = {}
    for name in check_names(names):
        try:
            result = BENCHMARKS[name](model, examples, context)
        except NotApplicable as reason:
            left_out[name] = str(reason)
            continue
        metrics, values = split_values(result.metrics)
        results[name] = replace(result, metrics=metrics, values=values)
    return results, left_out


def about(benchmark: Benchmark) -> str:
    """The first paragraph of a benchmark's docstring: what it measures."""
    return " ".join((inspect.getdoc(benchmark) or "").partition("\n\n")[0].split())


def check_names(names: Sequence[str]) -> Sequence[str]:
    """The names, all of them of benchmarks. Raises UserError."""
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"--tasks {name!r} is unknown; there are {', '.join(BENCHMARKS)}.")
    return names


def missing_classes(source: Source, examples: EncodedExamples, flag: str) -> list[str]:
    """A sentence where the examples lack classes of the source; none where they have all or it can't be known."""
    everywhere = {key(names) for value in source.labels() if (names := class_names(value))}
    judged = {key(names) for example in examples.examples if (names := label(example))}
    if not everywhere - judged:
        return []
    return [
        f"{len(examples.examples)} examples of {len(source)} have {len(judged)} of {len(everywhere)} classes; "
        f"raise {flag} to have them all."
    ]
