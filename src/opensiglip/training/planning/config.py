"""`PlanConfig`: what `opensiglip plan` can be asked besides the recipe's own keywords; its fields are the flags."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from opensiglip.bounds import Bounds
from opensiglip.training.config import OptimizerName

UTILISATION = 0.31  # of the chip's peak, at which the plans of published runs come near their stated cost


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a plan is made for.

    Args:
        batch_size: images of the global batch, over all ranks and parts.
        gpus: ranks, one on each.
        gpu: h100 (80 GB), h200, a100 (80 GB), l40s, t4, or cpu: this machine, its rate measured.
        examples: image visits of the whole run, such as 3e9; for days and GPU-hours.
        accumulate: parts that a rank's share of the batch is encoded in.
        checkpointing: keep no activations inside layers.
        shard: weights, gradients and moments cut among the ranks.
        keep_tokens: share of an image's patches that the tower reads, as of `train`.
        full_from: share of training from which on all are read; by default 0.9.
        precision: auto, fp32, bf16 or fp16.
        optimizer: adamw, muon or adafactor.
        vocabulary: entries of the tokenizer.
        data: what texts and regions are drawn from, to know how long they are: scenes, or a folder.
        utilisation: share of the machine's peak rate that the products take.
        json: print JSON instead of text.
    """

    batch_size: Annotated[int, Bounds(at_least=1)] = 128
    gpus: Annotated[int, Bounds(at_least=1)] = 1
    gpu: Literal["h100", "h200", "a100", "l40s", "t4", "cpu"] = "h100"
    examples: Annotated[float | None, Bounds(more_than=0)] = None
    accumulate: Annotated[int, Bounds(at_least=1)] = 1
    checkpointing: bool = False
    shard: bool = False
    keep_tokens: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0
    full_from: Annotated[float | None, Bounds(more_than=0, at_most=1)] = None
    precision: str = "auto"
    optimizer: OptimizerName = "adamw"
    vocabulary: Annotated[int, Bounds(at_least=258)] = 32_000
    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ("scenes",)
    utilisation: Annotated[float, Bounds(more_than=0, at_most=1)] = UTILISATION
    json: bool = False
