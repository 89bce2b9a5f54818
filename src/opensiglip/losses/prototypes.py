"""Self-distillation over prototypes, in chunks of rows: the scores of all rows are never in memory at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from opensiglip.losses.equations import distillation_block
from opensiglip.losses.fused import add_product, fuse, product_dtype, result, tile_sizes


class TeacherStatistics(NamedTuple):
    """Sums over the teacher's rows, all constants: vectors [K] and scalars."""

    scores: Tensor  # before the centre is taken off [K]
    probabilities: Tensor  # [K]
    used: Tensor  # 1 where a row has its highest probability [K]
    entropy: Tensor  # of each row
    mean_entropy: Tensor  # of the mean over a group's views


def prototype_distillation(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    slow_prototypes: Tensor,
    centre: Tensor,
    *,
    temperature: float,
    slow_temperature: float,
) -> tuple[Tensor, TeacherStatistics]:
    """-sum_nl sum_k p_nk log softmax(P s_nl / tau)_k, p_n = mean_g softmax((Q t_ng - c) / tau_t), chunked over n.

    student s [N, L, D], prototypes P [K, D]; constants: teacher t [N, G, D], slow_prototypes Q [K, D], centre c [K].
    Under autocast the products run in its dtype, except fp16 (as in `linear_cross_entropy`).
    """
    dtype = product_dtype(prototypes)
    constants = (x.detach() for x in (teacher, slow_prototypes, centre))
    slopes = torch.is_grad_enabled()
    loss, _, _, vectors, scalars = _prototype_distillation(
        student, prototypes, *constants, temperature, slow_temperature, dtype, slopes
    )
    return loss, TeacherStatistics(*vectors.detach(), *scalars.detach())


@torch.library.custom_op("opensiglip::prototype_distillation", mutates_args=())
def _prototype_distillation(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    slow_prototypes: Tensor,
    centre: Tensor,
    temperature: float,
    slow_temperature: float,
    dtype: torch.dtype,
    slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    high = torch.promote_types(student.dtype, torch.float32)
    loss = torch.zeros((), dtype=high, device=student.device)
    vectors, scalars = loss.new_zeros(3, len(prototypes)), loss.new_zeros(2)
    ds, dp = (torch.zeros_like(x, dtype=high) if slopes else x.new_empty(0) for x in (student, prototypes))
    p, q, c = prototypes.to(dtype), slow_prototypes.to(dtype), centre.to(high)
    views = student.shape[1] + teacher.shape[1]
    sizes, row = tile_sizes(student), views * len(prototypes) * loss.element_size()  # bytes of a group's scores
    chunk, strip = max(1, sizes.tokens // views, sizes.block // row), max(1, sizes.strip // row)
    with torch.autocast(student.device.type, enabled=False):
        for at in range(0, len(student), chunk):
            here = slice(at, at + chunk)
            s = student[here].to(dtype)
            narrow, wanted = s @ p.T, teacher[here].to(dtype) @ q.T  # [chunk, L or G, K]
            for some, other in zip(narrow.split(strip), wanted.split(strip), strict=True):
                part, slope, *sums = distillation_block(
                    some.to(high) / temperature, other.to(high), c, slow_temperature, slopes=slopes
                )
                loss += part
                vectors[:2] += torch.stack(sums[:2])
                vectors[2].index_fill_(0, sums[2], 1.0)
                scalars += torch.stack(sums[3:])
                if slopes:
                    some.copy_(slope.div_(temperature))
            if slopes:
                ds[here] = narrow @ p
                add_product(dp, narrow.flatten(0, 1).T, s.flatten(0, 1))
    loss, *grads = result(loss, (student, prototypes), (ds, dp), slopes)
    return loss, grads[0], grads[1], vectors, scalars


def _statistics(*args: Tensor) -> tuple[Tensor, Tensor]:
    high = torch.promote_types(args[0].dtype, torch.float32)
    return args[0].new_empty(3, len(args[1]), dtype=high), args[0].new_empty(2, dtype=high)


fuse(_prototype_distillation, differentiable=2, others=7, beside=_statistics)
