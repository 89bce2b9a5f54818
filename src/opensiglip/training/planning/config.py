"""`PlanConfig`: the arguments of `opensiglip plan` besides the recipe's own keywords; its fields are the flags."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from opensiglip.bounds import Bounds
from opensiglip.training.config import OptimizerName

UTILISATION = 0.31  # of the chip's peak, at which the plans of published runs come near their stated cost


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Arguments of a plan.

    Args:
        batch_size: images per global batch, over all ranks and parts.
        gpus: number of GPUs, with one rank each.
        gpu: h100 (80 GB), h200, a100 (80 GB), l40s, t4, or cpu for this machine with its measured rate.
        examples: examples seen in the whole run, such as 3e9; gives days and GPU-hours.
        accumulate: number of parts in which a rank encodes its share of the batch.
        checkpointing: recompute activations inside layers in the backward pass.
        shard: shard weights, gradients and moments over the ranks.
        keep_tokens: fraction of an image's patches that the tower reads, as in `train`.
        full_from: fraction of training from which on all patches are read; by default 0.9.
        precision: auto, fp32, bf16 or fp16.
        optimizer: adamw, muon, adafactor or schedule-free-adamw.
        vocabulary: vocabulary size of the tokenizer.
        data: source of texts and regions, which determines their lengths: scenes, or a folder.
        utilisation: fraction of the machine's peak rate that matrix products reach.
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
