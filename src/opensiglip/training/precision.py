"""Which number format the products run in."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import nn

from opensiglip.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose(precision: str, device: torch.device) -> tuple[str, str]:
    """("no", "bf16" or "fp16": what is multiplied in half precision; a few words on why). Raises UserError.

    bf16 autocast is chosen where the hardware multiplies it: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX (there
    it is about twice as fast). GPUs before Ampere (T4, V100) multiply fp16, which needs the loss scaled. Losses stay
    in float32 either way.
    """
    if precision == "fp32":
        return "no", "asked for"
    if precision in DTYPES:
        return precision, "asked for"
    if precision != "auto":
        raise UserError(f"--precision {precision!r} is unknown; give auto, fp32, bf16 or fp16.")
    native = multiplies_bf16(device)
    if device.type == "cuda":
        return ("bf16", "this GPU multiplies it") if native else ("fp16", "this GPU has no bf16; the loss is scaled")
    return ("bf16", "this CPU has AVX512-BF16 or AMX") if native else ("no", f"this {device.type} has no fast bf16")


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What to compute within, in a precision that `choose` gave."""
    return partial(torch.autocast, device.type, DTYPES.get(precision), enabled=precision in DTYPES)


class TrainStep(nn.Module):
    """The learner's forward in the run's precision, as DDP wraps it; what it returns is in float32.

    A fresh module, as Accelerate leaves a prepared one alone.
    """

    def __init__(self, learner: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.learner, self.autocast = learner, autocast

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with self.autocast():
            found = self.learner(*inputs, **named)
        return convert_to_fp32(found)


def overflows(scaler: torch.amp.GradScaler, losses: Mapping[str, float], norm: float) -> bool:
    """Whether only the scaled gradient is not finite, so that a smaller scale is all that is needed."""
    if not scaler.is_enabled() or math.isfinite(norm) or scaler.get_scale() <= 1:
        return False
    return all(math.isfinite(loss) for loss in losses.values())


def multiply(precision: str, device: torch.device) -> None:
    """With half precision on a GPU, let it multiply what stays in float32 as TF32 (ten bits of mantissa).

    That is the pairwise loss, whose embeddings come out of products of seven bits, or of ten. TPUs, where SigLIP was
    trained, multiply float32 in bf16 by default.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "no" else "high")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx", "bf16"))
