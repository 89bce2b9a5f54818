"""AdamW with decay on matrices only, and the schedule: linear warm-up, then cosine to zero."""

import math
from collections.abc import Container
from typing import Any

import torch
from torch import nn

from opensiglip.models.decoder import Vocabulary

RULES = 2  # of decay and schedule, in every checkpoint: a run goes on by the rules that it began with (1: see below)
MATRICES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, Vocabulary)
BETAS = (0.9, 0.95)  # SigLIP found beta2 0.95 necessary for stability (Sec. 5); SigLIP 2 does not give its betas


def matrices(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay applies to: big_vision's `*/kernel` (optax.py:114-149).

    Embeddings, positions, the MAP probe, norms, biases, temperature and its bias are not decayed.
    """
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        if isinstance(part, MATRICES)
        for name, parameter in part.named_parameters(recurse=False)
        if parameter.ndim >= 2
    }


def parameter_groups(
    module: nn.Module, weight_decay: float, slowed: Container[str] = (), factor: float = 1.0
) -> list[dict[str, Any]]:
    """The trainable parameters as any AdamW takes them: `weight_decay` on matrices, 0 on the rest.

    The parameters named in `slowed` learn at `factor` times the rate: each group holds its own as "factor". They decay
    as all others do (big_vision's lr_mults scale no decay): torch multiplies decay by the rate, so theirs is divided.
    """
    decayed = matrices(module)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in named if (name in decayed) == decay and (name in slowed) == slow],
            "weight_decay": weight_decay / (factor if slow else 1.0) if decay else 0.0,
            "factor": factor if slow else 1.0,
        }
        for slow in (False, True)
        for decay in (True, False)
    ]
    return [group for group in groups if group["params"]]


def adamw(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    slowed: Container[str] = (),
    factor: float = 1.0,
    betas: tuple[float, float] = BETAS,
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`: in our loop, and in transformers' Trainer as `optimizers=(adamw(...), None)`.

    big_vision's wd 1e-4 is not multiplied by the learning rate: at its lr 1e-3 that is `weight_decay` 0.1 here.
    """
    groups = parameter_groups(module, weight_decay, slowed, factor)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def keep_rules(optimizer: torch.optim.Optimizer, rules: int) -> None:
    """Let a run go on by the rules that it began with: by rules 1 the slower parameters' decay was slower, too."""
    if rules == 1:
        for group in optimizer.param_groups:
            group["weight_decay"] *= group["factor"]


def rate(step: float, steps: int, warmup: int, rules: int = RULES, decays: bool = True) -> float:
    """The schedule's factor at a step: step / warmup, then half a cosine from the end of the warm-up to zero, or 1.

    So the first step only begins Adam's averages. The cosine's progress counts from the end of the warm-up (big_vision
    utils.py:1113-1137). By rules 1, warm-up was (step + 1) / warmup.
    """
    if step < warmup:
        return (step + (rules == 1)) / warmup
    if not decays:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
