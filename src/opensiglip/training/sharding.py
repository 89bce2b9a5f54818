"""Sharding (torch's FSDP2): each rank keeps a slice of every weight, of its gradient and of its moments.

A layer's weights are gathered where it is called, and let go behind it; its gradient is averaged over ranks and cut as
soon as it is there. So the numbers are those of DDP. What of towers, decoder and objectives is no layer (positions,
norms, poolers, temperature) is gathered once a step.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipTextEmbeddings
from transformers.models.siglip2.modeling_siglip2 import Siglip2TextEmbeddings

from opensiglip.distributed import world
from opensiglip.errors import UserError
from opensiglip.models.decoder import Vocabulary
from opensiglip.models.ema import Ema
from opensiglip.models.heads import Head
from opensiglip.models.towers import IMAGE_EMBEDDINGS
from opensiglip.objectives.base import Objective

# Gathered as one, beside the layers of a list. Each is read by its call alone.
UNITS = (SiglipTextEmbeddings, Siglip2TextEmbeddings, nn.Embedding, Vocabulary, Head)
# Parts of these are read by others: Vision reads its tower's positions.
READ = (*IMAGE_EMBEDDINGS, CLIPVisionEmbeddings)


def shard(learner: nn.Module, device: torch.device) -> None:
    """Cut the learner's weights among all ranks, in place; what a rank keeps lies on its device.

    Every rank must hold the same weights. Make the optimizer after. Raises UserError where a term generates texts.
    """
    for module in learner.modules():
        if isinstance(module, Objective) and module.generates:
            raise UserError(f"--shard and {module.generates} can't be combined; leave one out.")
    mesh = init_device_mesh(device.type, (world()[1],))
    for unit in units(learner):
        fully_shard(unit, mesh=mesh)
    for module in learner.modules():
        if isinstance(module, Ema) and not isinstance(module.copy, UNITS):
            fully_shard(module.copy, mesh=mesh, reshard_after_forward=True)
    fully_shard(learner, mesh=mesh)


def units(module: nn.Module) -> list[nn.Module]:
    """The parts that are gathered by themselves: layers, embeddings, vocabularies and heads; none within another.

    Not those that share a weight with another part, as T5's embeddings do.
    """
    times = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))

    def find(outer: nn.Module) -> Iterator[nn.Module]:
        listed = isinstance(outer, nn.ModuleList | nn.Sequential)
        for part in () if isinstance(outer, READ) else outer.children():
            if not (listed or isinstance(part, UNITS)):
                yield from find(part)
            elif (parameters := list(part.parameters())) and all(times[id(p)] == 1 for p in parameters):
                yield part

    return list(find(module))


def whole(x: Tensor) -> Tensor:
    """All of a tensor of which each rank has a slice; any other as it is. To be called on all ranks."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def local(x: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return x.to_local() if isinstance(x, DTensor) else x


def cut(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: this rank's slice of it, where that has one."""
    if not isinstance(like, DTensor):
        return x
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)  # no rank sends anything


def gather(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Copies on the CPU of whole tensors, one after the other; nothing where not `keep`. To be called on all ranks."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        all_of_it = whole(tensor.detach())
        if keep:
            copies[name] = all_of_it.cpu().contiguous().clone()
    return copies


def hollow(module: Any, device: torch.device | str) -> Any:
    """A copy of a module that is not sharded, with parameters of unknown values; on "meta" they take no memory."""
    parameters = {id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in module.parameters()}
    return deepcopy(module, parameters)
