"""AdamW with decay on matrices only, and the schedule: linear warm-up, then cosine to zero."""

import math
from collections.abc import Container

import torch
from torch import nn

from opensiglip.models.decoder import Vocabulary

MATRICES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, Vocabulary)


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


def adamw(
    module: nn.Module, lr: float, weight_decay: float, slower: Container[str] = (), factor: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (0.9, 0.95) over the trainable parameters, decoupled decay on matrices only.

    The parameters named in `slower` learn at `factor` times the rate: each group holds its own as "factor".

    SigLIP found beta2 0.95 necessary for stability (Sec. 5); SigLIP 2 does not give its betas. big_vision's wd 1e-4 is
    not multiplied by the learning rate: at its lr 1e-3 that is `weight_decay` 0.1 here.
    """
    decayed = matrices(module)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in named if (name in decayed) == decay and (name in slower) == slow],
            "weight_decay": weight_decay if decay else 0.0,
            "factor": factor if slow else 1.0,
        }
        for slow in (False, True)
        for decay in (True, False)
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95), fused=True)


def rate(step: float, steps: int, warmup: int) -> float:
    """The schedule's factor at a step: (step + 1) / warmup, then half a cosine from the end of the warm-up to zero.

    The cosine's progress counts from the end of the warm-up (big_vision utils.py:1113-1137).
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
