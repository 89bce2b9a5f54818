"""What papers say that their training took, beside what `opensiglip plan` makes of the same run at one utilisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opensiglip.recipes import build_recipe, find_recipe
from opensiglip.training.planning.config import UTILISATION
from opensiglip.training.planning.networks import meta_learner
from opensiglip.training.planning.plan import make_plan
from opensiglip.training.planning.report import table
from opensiglip.training.planning.request import data_plan
from opensiglip.training.planning.step import Setting

CHIPS = {"TPUv3": 123e12, "TPUv4": 275e12, "A100": 312e12}  # dense bf16 FLOP/s, by their makers
BATCH = 64  # images: FLOP an example do not hang on it but by the comparison, which is below 0.1 %
H = "1280x32x5120x16"
NARROW = "768x12x3072x12"  # CLIPA's text tower beside L; beside H it is 1024 wide
H_TEXT = "1024x24x4096x16"


@dataclass(frozen=True)
class Run:
    """A published run: hours of a chip, as stated; parts of it by recipe, keywords and examples."""

    name: str
    source: str
    chip: str
    hours: float
    parts: tuple[tuple[str, Mapping[str, Any], float], ...]
    vocabulary: int = 32_000


def _clipa(image: str, text: str, *stages: tuple[int, int, float]) -> tuple[tuple[str, Mapping[str, Any], float], ...]:
    return tuple(
        ("clip", {"size": f"{image}+{text}/14", "resolution": side, "length": length}, examples)
        for side, length, examples in stages
    )


LARGE = "1024x24x4096x16"
RUNS = (
    Run("Cap B/16", "CapPa, Table 1", "TPUv4", 454, (("cap", {"size": "B/16", "resolution": 224}, 1e9),)),
    Run("CLIP* B/16", "CapPa, Table 1", "TPUv4", 444, (("clip", {"size": "B/16", "resolution": 224}, 1e9),)),
    Run("Cap L/14", "CapPa, Table 1", "TPUv4", 1570, (("cap", {"size": "L/14", "resolution": 224}, 1e9),)),
    Run("CLIP* L/14", "CapPa, Table 1", "TPUv4", 1596, (("clip", {"size": "L/14", "resolution": 224}, 1e9),)),
    Run(
        "LocCa L/14", "LocCa: 153 h of 256", "TPUv3", 153 * 256, (("locca", {"size": "L/14", "resolution": 224}, 9e9),)
    ),
    Run(
        "CoCa 2.1B",
        "CoCa: 5 days of 2048",
        "TPUv4",
        5 * 24 * 2048,
        (("coca", {"size": "1408x40x6144x16+1408x18x5632x16/18", "resolution": 288}, 500_000 * 65_536),),
        vocabulary=64_000,
    ),
    Run(
        "CLIPA-v1 L/16 (I37, T8)",
        "its README: 3 days of 8",
        "A100",
        3 * 24 * 8,
        (("clip", {"size": f"{LARGE}+{NARROW}/16", "resolution": 96, "length": 8}, 6 * 400e6),),
    ),
    Run("CLIPA-v2 L/14", "its README", "A100", 4008, _clipa(LARGE, NARROW, (84, 8, 12.8e9), (224, 32, 512e6))),
    Run("CLIPA-v2 H/14", "its README", "A100", 7776, _clipa(H, H_TEXT, (84, 8, 12.8e9), (224, 32, 512e6))),
)
UNKNOWN = """\
CapPa's hours are recalled, not read; CLIPA-v2's are its authors' own estimates.

Not compared, because the source leaves something open:
  SigLIP B/16, 32 TPUv4 for 2 and 5 days: the examples seen are not in our notes.
  SigLiT g/14, 4 TPUv4 for 2 days: 107,000 steps of 20,000, but neither the text's length nor whether the frozen
    tower's embeddings were stored; with the tower run, 4 chips could not reach it at their full rate.
  SigLIP 2, up to 2048 TPUv5e: no time. PaLI-17B, 1024 TPUv4 for 7 days: lengths and resolution by phase are open.
  OpenVision 2 L/14, 57 h: the chips and the tokens kept are not in our notes."""


def costs() -> str:
    """The table, and what is left out and why."""
    rows = [["published run", "stated in", "chip-hours", f"planned at {UTILISATION:.0%}", "off"]]
    for run in RUNS:
        total = sum(examples * flops(run, recipe, keywords) for recipe, keywords, examples in run.parts)
        hours = total / (CHIPS[run.chip] * UTILISATION * 3600)
        rows.append(
            [run.name, run.source, f"{run.hours:.0f} {run.chip}", f"{hours:.0f}", f"{hours / run.hours - 1:+.0%}"]
        )
    return f"{table(rows)}\n\n{UNKNOWN}"


def flops(run: Run, recipe: str, keywords: Mapping[str, Any]) -> float:
    """FLOP an example."""
    import torch

    with torch.device("meta"):
        made = build_recipe(find_recipe(recipe), keywords)
    data = data_plan(made, ("scenes",), BATCH, run.vocabulary)
    return make_plan(meta_learner(made, data.pipeline), data, Setting("gpu", "bf16")).flops
