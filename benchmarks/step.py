"""A whole training step, from pixels and ids to the optimizer: ours against open_clip's and transformers'."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.case import PLAIN, Case
from benchmarks.measure import Row, Variant, compare, positive, start
from benchmarks.peers import coca_steps, naive_captions_step, open_clip_steps, transformers_step
from benchmarks.report import report
from opensiglip.errors import UserError
from opensiglip.models.sizes import Architecture, Shape, architecture, head
from opensiglip.objectives.captioning import Caption
from opensiglip.objectives.contrastive import Sigmoid, Softmax

CASES = ("contrastive", "one caption", "three texts", "whole run")
SMALL = Shape(256, 6, 1024, 4)
LESSONS = 0.2  # the share of a run in which SigLIP 2 also distils


def bench(
    size: str = "small",
    vocabulary: int = 32_000,
    images: int = 32,
    precision: tuple[str, ...] = ("fp32",),
    cases: tuple[str, ...] = CASES,
    keep_tokens: tuple[float, ...] = (),
    rounds: int = 3,
    device: str = "auto",
    out: Path = Path("runs/bench"),
) -> None:
    """Training steps of SigLIP, SigLIP with captions and SigLIP 2, against open_clip's and transformers'.

    Args:
        size: small (6 layers of width 256, 96 pixels), or a size that `train` takes.
        vocabulary: vocabulary size of the tokenizer.
        images: images per batch.
        precision: fp32, bf16 or both.
        cases: contrastive, "one caption", "three texts", "whole run" (80 % in SigLIP 2's first stage, 20 % with all of
            it, against siglip).
        keep_tokens: in place of `cases`, our step with these fractions of an image's patches read, against all patches.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        out: folder for the JSON and the plot.
    """
    positive(vocabulary=vocabulary, images=images, rounds=rounds, keep_tokens=keep_tokens)
    if any(share >= 1 for share in keep_tokens):
        raise UserError("--keep-tokens takes shares below 1; all patches are measured beside them.")
    if unknown := [case for case in cases if case not in CASES]:
        raise UserError(f"--cases {unknown[0]!r} is unknown; there are {', '.join(CASES)}.")
    if unknown := [name for name in precision if name not in ("fp32", "bf16")]:
        raise UserError(f"--precision {unknown[0]!r} is unknown; give fp32 or bf16.")
    place, rows = start(device), list[Row]()
    networks, shape = _architecture(size), head("tiny" if size == "small" else size)
    for name in precision:
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        shared = Case(networks, shape, vocabulary, images, place, dtype)
        for case in ("contrastive", "one caption") if keep_tokens else ():
            torch.manual_seed(0)
            rows += kept_rows(f"{case}, {name}", shared, case == "one caption", keep_tokens, rounds)
        for case in () if keep_tokens else cases:
            torch.manual_seed(0)
            variants, peer = _variants(case, shared)
            rows += compare(f"{case}, {name}", variants, peer, place, rounds, dtype)
            if case == "whole run":
                rows.append(_weighted(rows[-3:]))
    report("step", rows, out, place)


def kept_rows(case: str, shared: Case, captions: bool, shares: Sequence[float], rounds: int) -> list[Row]:
    """Our step on all patches and on each share of them; `memory` is the ratio of peaks."""
    variants = [
        shared.variant(
            "opensiglip, all patches" if share == 1 else f"opensiglip, {share:g} of them",
            [Sigmoid(), *([Caption()] if captions else [])],
            tasks=int(captions),
            keep=share,
        )
        for share in (1.0, *shares)
    ]
    rows = compare(case, variants, variants[0].name, shared.place, rounds, shared.dtype)
    whole = rows[0].peak_mib
    return [
        replace(row, facts=row.facts | {"memory": f"{row.peak_mib / whole:.2f}"}) if row.peak_mib and whole else row
        for row in rows
    ]


def _variants(name: str, case: Case) -> tuple[list[Variant], str]:
    """Ours and the peers' that are installed, and the name of the one that counts as 1."""
    if name == "contrastive":
        theirs = [*open_clip_steps(case), transformers_step(case)]
        clip = case.variant("opensiglip clip", [Softmax()], tasks=0)
        return [case.variant(PLAIN, [Sigmoid()], tasks=0), clip, *theirs], theirs[0].name
    if name == "whole run":
        return case.whole_run(), PLAIN
    three = case.variant("opensiglip siglip + locca", [Sigmoid(), Caption()], tasks=3, parallel=0.5)
    if name == "one caption":
        one = case.variant("opensiglip siglip + cap", [Sigmoid(), Caption()], tasks=1)
        theirs = coca_steps(case)
        return [one, three, *theirs], theirs[0].name if theirs else one.name
    none = case.variant("opensiglip, none in parallel", [Sigmoid(), Caption()], tasks=3)
    naive = naive_captions_step(case)
    return [three, none, naive], naive.name


def _architecture(size: str) -> Architecture:
    if size != "small":
        return architecture(size, None, text=True, decoder=True)
    return Architecture(96, 16, 64, SMALL, SMALL, replace(SMALL, depth=3))


def _weighted(rows: Sequence[Row]) -> Row:
    """A run's mean step: 80 % of the first stage, 20 % of all."""
    plain, first, everything = rows

    def mean(one: float, other: float) -> float:
        return (1 - LESSONS) * one + LESSONS * other

    seconds = mean(first.seconds, everything.seconds)
    return replace(
        first,
        variant="opensiglip siglip2, 80 % + 20 %",
        seconds=seconds,
        low=mean(first.low, everything.low),
        high=mean(first.high, everything.high),
        peak_mib=everything.peak_mib,
        speed=plain.seconds / seconds,
        over_floor=None,
        per_second=(first.per_second or 0.0) * first.seconds / seconds,
    )
