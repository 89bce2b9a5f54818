"""`opensiglip eval` and `opensiglip compare`: their flags."""

from pathlib import Path
from typing import Annotated

import tyro
from transformers.utils import logging

from opensiglip.data.sources.registry import with_box_format
from opensiglip.evaluation import compare as side_by_side
from opensiglip.evaluation.benchmark import Probe
from opensiglip.evaluation.run import evaluate
from opensiglip.reports.evaluation_page import table


def command(
    model: Annotated[str, tyro.conf.Positional],
    *,
    data: str,
    tasks: str = "all",
    out: Path | None = None,
    split: str = "val",
    count: int = 500,
    train_count: int = 2000,
    languages: str | None = None,
    box_format: str | None = None,
    seed: int = 0,
    trust: bool = False,
    probe_steps: int = 1500,
    probe_tasks: str = "cap,aref,gcap",
) -> None:
    """Judge a model on held-out examples: a table, and with --out JSON and a page with pictures.

    Args:
        model: a run, an export, a transformers folder or hub id, open_clip:NAME[:PRETRAINED] or timm:NAME.
        data: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl.
        tasks: all (but decoder_probe, which trains), or names with commas between: retrieval, zeroshot, grounding,
            grounded_captioning, captioning, compositionality, probes, openvocab, decoder_probe.
        out: folder for evaluation.json and evaluation.html.
        split: val, test or train; scenes also have val_drawings.
        count: examples to judge on.
        train_count: training examples that probes are fitted to.
        languages: all, or codes such as en or de,fr; by default all the source has.
        box_format: how a folder writes boxes: xyxy (corners, the default), xywh or cxcywh (centre, width, height), with
            -relative after it for shares of the image.
        seed: of what probes draw.
        trust: open the Python files of its own tasks that the model names, which run as code.
        probe_steps: of decoder_probe's training, of 64 images each.
        probe_tasks: what its decoder learns to write, of cap, aref and gcap.
    """
    logging.set_verbosity_error()  # it warns of its own default configs
    logging.disable_progress_bar()
    spoken = None if languages is None else languages.split(",")
    wanted = () if tasks == "all" else [name.strip() for name in tasks.split(",")]
    results = evaluate(
        model,
        with_box_format([data], box_format)[0],
        wanted,
        out,
        split=split,
        count=count,
        train_count=train_count,
        languages=spoken,
        seed=seed,
        trust=trust,
        probe=Probe(probe_steps, tuple(name.strip() for name in probe_tasks.split(","))),
    )
    print(table(results))
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
) -> None:
    """Models side by side: figures, and differences from the first with paired 95 % intervals.

    Args:
        models: two or more: folders with an evaluation.json that `opensiglip eval --out` left, or models to judge now.
        data: what to judge on: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl.
        tasks: all, or names with commas between, as `opensiglip eval --help` lists them.
        out: folder for compare.json and compare.png.
        split: val, test or train; scenes also have val_drawings.
        count: examples to judge on.
        train_count: training examples that probes are fitted to.
        languages: all, or codes such as en or de,fr; by default all the source has.
        seed: of what probes draw.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names, rows = side_by_side.compare(
        models,
        data,
        [] if tasks == "all" else [name.strip() for name in tasks.split(",")],
        split=split,
        count=count,
        train_count=train_count,
        languages=None if languages is None else languages.split(","),
        seed=seed,
    )
    print(side_by_side.table(names, rows))
    if out is not None:
        side_by_side.write(out, names, rows)
        print(f"\nplot        {out / 'compare.png'}\nfigures     {out / 'compare.json'}")
