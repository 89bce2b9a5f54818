"""`opensiglip.evaluate`, and the commands `opensiglip eval` and `opensiglip compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from opensiglip.data.sources.registry import with_box_format
from opensiglip.disk import writable
from opensiglip.errors import UserError
from opensiglip.evaluation import compare as comparing
from opensiglip.evaluation.benchmark import DEFAULT_PROBE, ProbeConfig
from opensiglip.evaluation.protocols.registry import run_protocol
from opensiglip.evaluation.run import COUNT, run_evaluation
from opensiglip.inference.predictor import Predictor
from opensiglip.reports.comparison import write_comparison
from opensiglip.reports.evaluation_page import table, write_evaluation
from opensiglip.reports.notebook import EvaluationResult


def evaluate(
    model: str | Path | Predictor,
    data: str,
    tasks: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    benchmark: str | None = None,
    split: str = "val",
    count: int | None = None,
    train_count: int = 2000,
    languages: Sequence[str] | None = None,
    seed: int = 0,
    probe: ProbeConfig = DEFAULT_PROBE,
    rerank: str | Path | None = None,
    raw_class_names: bool = False,
    quiet: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on `count` examples of a source (500), spread over it; the same call gives the same metrics.

    `benchmark` names a published protocol (`PROTOCOLS`). Then `data` is a folder with its files as downloaded, all of
    its examples are evaluated unless `count` is given, and `tasks`, `split` and `raw_class_names` must be left out.

    `tasks` are the benchmarks (`BENCHMARKS`); none for all but decoder_probe, which trains. The other arguments are
    those of `run_evaluation`. Returns model, data, counts, tasks: {name: metrics, those with an interval with
    NAME_ci95}, left_out: {name: why}; with `out`, evaluation.json and evaluation.html are written there. Raises
    UserError on bad input, and if none of the benchmarks applies.
    """
    if out is not None:
        writable(Path(out))  # before it evaluates for minutes
    shared: dict[str, Any] = {"train_count": train_count, "languages": languages, "seed": seed, "probe": probe}
    shared |= {"quiet": quiet, "trust": trust}
    if benchmark is not None:
        if tasks or split != "val" or raw_class_names or rerank is not None:
            raise UserError(
                "--benchmark sets what is evaluated and how; leave out --tasks, --split, --raw-class-names and "
                "--rerank."
            )
        evaluation = run_protocol(model, benchmark, data, count=count, **shared)
    else:
        count = COUNT if count is None else count
        evaluation = run_evaluation(
            model, data, tasks, split=split, count=count, raw_class_names=raw_class_names, rerank=rerank, **shared
        )
    if out is not None:
        write_evaluation(Path(out), evaluation)
    return EvaluationResult(evaluation.record)


def command(
    model: Annotated[str, tyro.conf.Positional],
    folder: Annotated[str | None, tyro.conf.Positional] = None,
    *,
    data: str | None = None,
    benchmark: str | None = None,
    tasks: str = "all",
    out: Path | None = None,
    split: str = "val",
    count: int | None = None,
    train_count: int = 2000,
    languages: str | None = None,
    box_format: str | None = None,
    seed: int = 0,
    raw_class_names: bool = False,
    rerank: str | None = None,
    trust: bool = False,
    probe_steps: int = 1500,
    probe_tasks: str = "cap,aref,gcap",
) -> None:
    """Evaluate a model on held-out examples: a table, and with --out JSON and a page with samples.

    Args:
        model: a run, an export, a transformers folder or hub id, open_clip:NAME[:PRETRAINED] or timm:NAME.
        folder: with --benchmark, the folder of its files as downloaded.
        data: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl.
        benchmark: a published protocol, in place of --tasks: imagenet, coco-5k, flickr30k, xm3600, refcoco, refcoco+,
            refcocog, sugarcrepe or aro.
        tasks: all (except fairness and decoder_probe, which trains), or benchmarks separated by commas: retrieval,
            zeroshot, grounding, grounded_captioning, captioning, answers, compositionality, probes, openvocab,
            fairness, decoder_probe.
        out: folder for evaluation.json and evaluation.html.
        split: val, test or train; scenes also have val_drawings.
        count: number of examples, spread over the split: by default 500, with --benchmark all.
        train_count: number of training examples to fit probes on.
        languages: all, or codes such as en or de,fr; by default all languages of the source.
        box_format: box format of a folder: xyxy (corners, the default), xywh or cxcywh (centre, width, height); with
            -relative, fractions of the image.
        seed: seed of the probes.
        raw_class_names: put class names into prompts unchanged; by default they are lower-cased and stripped of
            punctuation.
        rerank: a model with a text tower, such as a run of align, which chooses among eight captions of each image;
            captioning evaluates the chosen ones, too.
        trust: open the Python files that the model names for its own tasks, and run their code.
        probe_steps: training steps of decoder_probe, with 64 images each.
        probe_tasks: tasks that the decoder of decoder_probe learns: cap, aref and gcap.
    """
    where = data if folder is None else folder
    if where is None:
        raise UserError("`opensiglip eval`: --data is missing: `scenes`, `scenes:key=value,...` or a folder.")
    if folder is not None and (benchmark is None or data is not None):
        raise UserError(
            f"`opensiglip eval`: {folder} is an extra argument; give --data, or --benchmark NAME and a folder."
        )
    if benchmark is not None and box_format is not None:
        raise UserError("--benchmark sets the box format; leave out --box-format.")
    record = evaluate(
        model,
        with_box_format([where], box_format)[0],
        () if tasks == "all" else _names(tasks),
        out,
        benchmark=benchmark,
        split=split,
        count=count,
        train_count=train_count,
        languages=None if languages is None else languages.split(","),
        seed=seed,
        probe=ProbeConfig(probe_steps, _names(probe_tasks)),
        raw_class_names=raw_class_names,
        rerank=rerank,
        trust=trust,
    )
    print(table(record))
    if out is not None:
        print(f"\npage        {out / 'evaluation.html'}\nfigures     {out / 'evaluation.json'}")


def compare(
    models: Annotated[tuple[str, ...], tyro.conf.Positional],
    *,
    data: str | None = None,
    tasks: str = "all",
    out: Path | None = None,
    split: str = "val",
    count: int = 500,
    train_count: int = 2000,
    languages: str | None = None,
    seed: int = 0,
    raw_class_names: bool = False,
) -> None:
    """Compare models: metrics, and differences from the first model with paired 95 % intervals.

    Args:
        models: two or more models, or folders with an evaluation.json written by `opensiglip eval --out`.
        data: data to evaluate on: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl.
        tasks: all, or names separated by commas, as listed by `opensiglip eval --help`.
        out: folder for compare.json, compare.html and compare.png.
        split: val, test or train; scenes also have val_drawings.
        count: number of examples, spread over the split.
        train_count: number of training examples to fit probes on.
        languages: all, or codes such as en or de,fr; by default all languages of the source.
        seed: seed of the probes.
        raw_class_names: put class names into prompts unchanged; by default they are lower-cased and stripped of
            punctuation.
    """
    if out is not None:
        writable(out)
    names, rows = comparing.compare(
        models,
        data,
        () if tasks == "all" else _names(tasks),
        split=split,
        count=count,
        train_count=train_count,
        languages=None if languages is None else languages.split(","),
        seed=seed,
        raw_class_names=raw_class_names,
    )
    print(comparing.table(names, rows))
    if out is not None:
        write_comparison(out, names, rows)
        print(f"\npage        {out / 'compare.html'}\nfigures     {out / 'compare.json'}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))
