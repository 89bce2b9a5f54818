"""Heads over pretrained towers begin with norms that make each number of what they read 0 on average, of deviation 1.

A tower's embeddings may lie in a narrow cone, as E5's do, so that what all share drowns what tells them apart. A
LayerNorm over an embedding's own numbers does not take that away; its weight and bias can, and a head then learns in
fewer steps.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.data.loader import DataPlan, Steps, to_device
from opensiglip.distributed import world
from opensiglip.inference.device import Autocast
from opensiglip.models.averaged_head import AveragedHead
from opensiglip.models.model import Model
from opensiglip.models.pretrained_towers import PretrainedText, PretrainedVision
from opensiglip.objectives.base import Encoded

EXAMPLES, AT_ONCE = 512, 32  # the run's first examples, of which the means and deviations are; in a batch
VIEWS = ("image", "global")  # the batch fields that are compared with texts; of both, the plain image
LEAST = 0.05  # a deviation that a number of a normed state has at least, as one that never changes tells nothing


@torch.no_grad()
def standardise(model: Model, plan: DataPlan, autocast: Autocast) -> None:
    """Set the first norm of each head by what it reads of the plan's first examples, or of all where they are fewer.

    Every rank reads the same ones, so that all begin alike. Nothing changes where no head begins with a norm.
    """
    norms = {name: found for name in ("vision", "text") if (found := _norms(getattr(model, name, None)))}
    if not norms:
        return
    count = min(EXAMPLES, sum(len(source) for source in plan.sources))
    if world()[0] == 0:
        print(f"heads       read {count} examples, by which their norms begin", flush=True)
    was, device = model.training, next(model.parameters()).device
    model.eval()  # no dropout, whose draws would move those of training
    read: dict[str, list[Tensor]] = {name: [] for name in norms}
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: read[name].append(inputs[0].float()))
        for name, found in norms.items()
        for norm in found
    ]
    alone = replace(plan, rank=0, ranks=1, parts=1, batch_size=min(AT_ONCE, count))
    steps, texts = Steps(alone), list[Tensor]()
    for step in range(plan.begin, plan.begin + count // alone.batch_size):
        encoded = Encoded(model, to_device(steps[step].parts[0], device))
        with autocast():
            encoded.image(next(view for view in VIEWS if {view, f"{view}_states"} & encoded.batch.keys()))
            if "text" in norms:
                encoded.text()
                texts.append(encoded["has_text"].flatten())
    for hook in hooks:
        hook.remove()
    model.train(was)
    for name, found in norms.items():
        states = torch.cat(read[name])
        states = states[torch.cat(texts)] if name == "text" else states
        if len(states) > 1:
            _set(found, states)


def _set(norms: list[nn.LayerNorm], states: Tensor) -> None:
    """Give norms the weight and bias that make their outputs of states [n, D] 0 on average, of deviation 1."""
    normed = F.layer_norm(states, states.shape[-1:], eps=norms[0].eps)
    deviation = normed.std(0).clamp(min=LEAST)
    for norm in norms:
        norm.weight.copy_(1 / deviation)
        norm.bias.copy_(-normed.mean(0) / deviation)


def _norms(tower: nn.Module | None) -> list[nn.LayerNorm]:
    """The norm that a tower's head begins with, and that of the head's average; none where there is no such head."""
    head: nn.Module | None = tower.head if isinstance(tower, PretrainedVision | PretrainedText) else None
    heads: list[nn.Module | None] = [head.average.copy, head.head] if isinstance(head, AveragedHead) else [head]
    firsts = [next((m for m in one.modules() if isinstance(m, nn.LayerNorm)), None) for one in heads if one is not None]
    return [norm for norm in firsts if norm is not None]
