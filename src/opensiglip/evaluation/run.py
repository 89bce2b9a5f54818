"""Every task by name, and `evaluate`: several of them on one model and one source."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opensiglip.data.sources.registry import open_source
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import PROBE, Context, Findings, Impossible, Probe, Task
from opensiglip.evaluation.benchmarks.captioning import captioning
from opensiglip.evaluation.benchmarks.compositionality import compositionality
from opensiglip.evaluation.benchmarks.decoder_probe import decoder_probe
from opensiglip.evaluation.benchmarks.grounded_captioning import grounded_captioning
from opensiglip.evaluation.benchmarks.grounding import grounding
from opensiglip.evaluation.benchmarks.open_vocabulary import openvocab
from opensiglip.evaluation.benchmarks.probes import probes
from opensiglip.evaluation.benchmarks.retrieval import retrieval
from opensiglip.evaluation.benchmarks.task_answers import answers
from opensiglip.evaluation.benchmarks.zero_shot import zeroshot
from opensiglip.evaluation.encoded import Judged, look
from opensiglip.evaluation.metrics.paired import apart
from opensiglip.inference.subject import Subject
from opensiglip.reports import evaluation_page as page

TASKS: dict[str, Task] = {
    "retrieval": retrieval,
    "zeroshot": zeroshot,
    "grounding": grounding,
    "grounded_captioning": grounded_captioning,
    "captioning": captioning,
    "answers": answers,
    "compositionality": compositionality,
    "probes": probes,
    "openvocab": openvocab,
    "decoder_probe": decoder_probe,
}
BY_NAME = ("decoder_probe",)  # minutes to hours, so only where it is asked for by name


def evaluate(
    model: str | Path | Subject,
    data: str,
    tasks: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    split: str = "val",
    count: int = 500,
    train_count: int = 2000,
    languages: Sequence[str] | None = None,
    seed: int = 0,
    probe: Probe = PROBE,
    quiet: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Judge a model on the first `count` examples of a source; the same call, the same figures.

    `tasks`: names of `TASKS`; none for all but those that train a network (`BY_NAME`).

    `trust`: open the Python files of its own tasks that the model names; give it for what you trained yourself.

    `model` is what `Subject.load` takes; probes are fitted to the first `train_count` examples of the split train.
    Returns model, data, counts, tasks: {name: figures, those with an interval with NAME_ci95}, left_out: {name: why};
    with `out`, evaluation.json and evaluation.html are written there. Raises UserError on bad input, and where none of
    the tasks can be done.
    """
    wanted = list(dict.fromkeys(tasks or (name for name in TASKS if name not in BY_NAME)))
    known(wanted)
    if count < 1 or train_count < 1 or probe.steps < 1:
        raise UserError("--count, --train-count and --probe-steps are at least 1.")
    if not probe.tasks or not set(probe.tasks) <= set(PROBE.tasks):
        raise UserError(f"--probe-tasks {','.join(probe.tasks)}: a probe learns some of {', '.join(PROBE.tasks)}.")
    subject = model if isinstance(model, Subject) else Subject.load(model)
    side = subject.frame.pixels
    source = open_source(data, split=split, languages=languages, pixels=side)
    training = None
    if split != "train":
        try:
            training = open_source(data, split="train", languages=languages, pixels=side)
        except UserError:  # a folder of nothing but held-out rows: probes say so themselves
            training = None
    spoken = None if languages is None or "all" in languages else tuple(languages)
    context = Context(training, spoken, seed, train_count, quiet, trust, probe)
    judged = look(subject, source, count, quiet=quiet)
    found, left_out = judge(subject, judged, wanted, context)
    if not found:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()) + ".")
    results: dict[str, Any] = {
        "model": subject.name,
        "data": data,
        "split": split,
        "examples": len(judged.examples),
        "frame": str(subject.frame),
        "seed": seed,
        "command": shlex.join(
            ["opensiglip", "eval", subject.name, "--data", data, "--tasks", ",".join(wanted), "--split", split]
            + ["--count", str(count), "--train-count", str(train_count), "--seed", str(seed)]
            + (["--languages", ",".join(languages)] if languages else [])
            + (["--probe-steps", str(probe.steps)] if probe.steps != PROBE.steps else [])
            + (["--probe-tasks", ",".join(probe.tasks)] if probe.tasks != PROBE.tasks else [])
        ),
        "tasks": {name: findings.figures for name, findings in found.items()},
        "values": {name: findings.values for name, findings in found.items()},
        "left_out": left_out,
    }
    if out is not None:
        page.write(Path(out), results, found, TASKS)
    return results


def judge(
    subject: Subject, judged: Judged, tasks: Sequence[str], context: Context
) -> tuple[dict[str, Findings], dict[str, str]]:
    """Findings by task, and by task why it was left out."""
    found: dict[str, Findings] = {}
    left_out: dict[str, str] = {}
    for name in known(tasks):
        try:
            findings = TASKS[name](subject, judged, context)
        except Impossible as reason:
            left_out[name] = str(reason)
            continue
        figures, values = apart(findings.figures)
        found[name] = replace(findings, figures=figures, values=values)
    return found, left_out


def known(tasks: Sequence[str]) -> Sequence[str]:
    """The tasks, all of them known. Raises UserError."""
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"--tasks {name!r} is unknown; there are {', '.join(TASKS)}.")
    return tasks
