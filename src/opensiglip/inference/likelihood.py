"""Log-likelihoods of texts given images, by the decoder.    (CapPa, Sec. 3)"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from opensiglip.data.fields.captions import Target, pack
from opensiglip.data.text import TextPipeline
from opensiglip.float64 import widen, widest
from opensiglip.inference.generate import TextDecoder

ROWS = 64  # decoded at once
ROW = 256  # tokens packed along a row
LOGITS = 2**24  # held at once
ImageText = tuple[Any, ...]  # the number of an image, then a text
OTHERS = 8  # images that a blind score is averaged over


@torch.no_grad()
def likelihoods(
    decoder: TextDecoder,
    memory: Tensor,
    asked: Sequence[tuple[int, Target]],
    pipeline: TextPipeline,
    valid: Tensor | None = None,
) -> list[float]:
    """Sum over a text's tokens, its end included, of log p(y_i | y_<i, image), for each (image, text) asked.

    memory [E, N, D], valid [E, N] bool where some are padding. Summed, not averaged; the prefix is not scored.
    (big_vision models/proj/cappa predict_fns.py:53-97.) An image's texts are packed along rows, so that
    it is read once a row; what PaLI's encoder read of one prompt counts as an image, with one text.
    """
    device = memory.device
    rows: list[tuple[int, list[int]]] = []  # an image, and which of `asked` share its row
    room = 0
    for number in sorted(range(len(asked)), key=lambda number: asked[number][0]):
        image, text = asked[number]
        size = len(text.prefix) + len(text.target)
        if not rows or rows[-1][0] != image or room < size:
            rows.append((image, []))
            room = ROW
        rows[-1][1].append(number)
        room -= size
    scores = torch.zeros(len(asked), dtype=widest(torch.device(device)), device=device)
    for at in range(0, len(rows), ROWS):
        here = rows[at : at + ROWS]
        packed = pack(
            [[asked[number][1] for number in numbers] for _, numbers in here],
            length=pipeline.policy.length,
            pad_id=pipeline.policy.pad_id,
            mask_id=decoder.mask_id,
        )
        batch = {name: field.to(device) for name, field in packed.items()}
        fields = [batch[name] for name in ("inputs", "positions", "segments", "full")]
        scored = batch["scored"]
        targets, segments = (batch[name].flatten()[scored] for name in ("targets", "segments"))
        images = [image for image, _ in here]
        seen = None if valid is None else valid[images]
        hidden = decoder(*fields, memory[images], seen).flatten(0, 1)[scored]
        blocks = (x.split(max(1, LOGITS // decoder.mask_id)) for x in (hidden, targets))
        likelihood = [
            decoder.vocabulary(some).float().log_softmax(-1).gather(1, label[:, None])[:, 0]
            for some, label in zip(*blocks, strict=True)
        ]
        before = torch.tensor([0, *(len(numbers) for _, numbers in here)]).cumsum(0).to(device)
        order = torch.tensor([number for _, numbers in here for number in numbers], device=device)
        owners = order[before[scored // batch["inputs"].shape[1]] + segments]
        scores.index_add_(0, owners, widen(torch.cat(likelihood)))
    return scores.tolist()


def blind_likelihoods(
    score: Callable[[list[ImageText]], list[float]], asked: Sequence[ImageText], count: int
) -> list[float]:
    """log p(y) without the image: the log of the mean of p(y | another image), over a few of the `count` images.

    `score` gives log p of each text that is asked; what is asked begins with the number of an image.

    Ours. CapPa (Table 6) trains another decoder without images; this is what the decoder at hand expects of any image,
    with no input that it was not trained to read.
    """
    shifts = sorted({round(count * (k + 1) / (OTHERS + 1)) for k in range(OTHERS)} - {0, count}) or [0]
    seen = [score([((image + shift) % count, *text) for image, *text in asked]) for shift in shifts]
    return (torch.tensor(seen, dtype=torch.float64).logsumexp(0) - math.log(len(shifts))).tolist()
