"""Which number format the products run in."""

import torch

from opensiglip.errors import UserError


def choose(precision: str, device: torch.device) -> tuple[str, str]:
    """(Accelerate's name of the precision, a few words on why). Raises UserError on an unknown name.

    bf16 autocast is chosen where the hardware multiplies it: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX (there
    it is about twice as fast). Losses stay in float32 either way.
    """
    if precision == "fp32":
        return "no", "asked for"
    if precision == "bf16":
        return "bf16", "asked for"
    if precision != "auto":
        raise UserError(f"--precision {precision!r} is unknown; give auto, fp32 or bf16.")
    if device.type == "cuda":
        return ("bf16", "this GPU multiplies it") if torch.cuda.is_bf16_supported() else ("no", "this GPU has no bf16")
    if device.type == "cpu" and cpu_multiplies_bf16():
        return "bf16", "this CPU has AVX512-BF16 or AMX"
    return "no", f"this {device.type} has no fast bf16"


def multiply(precision: str, device: torch.device) -> None:
    """With bf16 on a GPU, let it multiply what stays in float32 as TF32 (ten bits of mantissa).

    That is the pairwise loss, whose embeddings come out of bf16 products (seven bits). TPUs, where SigLIP was trained,
    multiply float32 in bf16 by default.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "bf16" else "highest")


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16 products."""
    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx", "bf16"))
