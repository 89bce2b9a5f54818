"""Made-up texts for the benches, several an image, as long as texts are: packed as ours and padded as others do."""

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.fields.captions import Target, pack
from opensiglip.types import Batch

CAPTION, BOXED = 22, 26  # tokens of a caption, and of a referring box or a grounded caption
PREFIX = 4  # of them: what the task starts with


def texts(images: int, tasks: int, length: int, vocabulary: int, *, parallel: float) -> list[list[Target]]:
    """Each image's targets: a caption, that share of them in parallel, then texts with boxes."""
    rng, rows = np.random.default_rng(0), []
    for image in range(images):
        row, side_by_side = [], int((image + 1) * parallel) > int(image * parallel)
        for task in range(tasks):
            spread = rng.uniform(0.6, 1.4)  # so that rows are as uneven as real ones
            count = int(np.clip(round((BOXED if task else CAPTION) * spread), PREFIX + 2, length))
            ids = [int(i) for i in rng.integers(2, vocabulary, count)]
            target = (*ids[PREFIX:-1], 1)
            row.append(Target(tuple(ids[:PREFIX]), target, parallel=side_by_side and task == 0))
        rows.append(row)
    return rows


def packed(rows: list[list[Target]], length: int, vocabulary: int) -> Batch:
    """The batch as our loader makes it."""
    return pack(rows, length=length, pad_id=0, mask_id=vocabulary)


def padded(rows: list[list[Target]], length: int, vocabulary: int) -> list[Batch]:
    """A batch for each task, every row padded to `length`: three passes instead of one."""
    batches = []
    for task in range(len(rows[0])):
        batch = packed([[row[task]] for row in rows], length, vocabulary)
        width = batch["inputs"].shape[1]
        wide = {name: _widen(x, length) for name, x in batch.items() if x.ndim == 2}
        wide["positions"] = torch.arange(length).expand(len(rows), -1)
        wide["segments"] = torch.zeros(len(rows), length, dtype=torch.int64)
        scored = batch["scored"]
        places = {"scored": scored // width * length + scored % width, "real": torch.arange(len(rows) * length)}
        batches.append(batch | wide | places)
    return batches


def real_tokens(rows: list[list[Target]]) -> int:
    """Tokens that carry loss."""
    return sum(len(target.target) for row in rows for target in row)


def _widen(x: Tensor, length: int) -> Tensor:
    """Columns cut or filled with 0 up to `length`."""
    wide = x.new_zeros(len(x), length)
    wide[:, : x.shape[1]] = x[:, :length]
    return wide
