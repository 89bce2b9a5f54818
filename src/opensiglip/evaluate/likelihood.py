"""How likely the decoder finds given texts: CapPa's way to choose among them, and the same without looking."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from opensiglip.data.captions import Ids, Target, pack
from opensiglip.data.text import TextPipeline
from opensiglip.fused import BLOCK_BYTES
from opensiglip.models.decoder import Decoder

ROWS = 64  # decoded at once
ROOM = 256  # tokens of a row: an image's texts are packed behind each other up to so many
OTHERS = 8  # images that a blind score is averaged over


def target(pipeline: TextPipeline, prefix: Ids, text: str) -> Target:
    """A text as it is trained: its ids behind `prefix`, cut to the length, and eos."""
    room = pipeline.policy.length - len(prefix) - 1
    return Target(prefix, (*pipeline.ids(f" {text}")[: max(room, 0)], pipeline.policy.eos_id))


@torch.no_grad()
def likelihoods(
    decoder: Decoder,
    memory: Tensor,
    asked: Sequence[tuple[int, Target]],
    pipeline: TextPipeline,
    valid: Tensor | None = None,
) -> list[float]:
    """log p(target | prefix, image), summed over the target's tokens, eos counted, for each (image, text) asked.

    The sum, not the mean (recipes.md 2.8; big_vision models/proj/cappa predict_fns.py:53-97): a longer text is less
    likely. memory [E, N, D] image tokens; valid [E, N] bool, where some are padding.
    """
    rows: list[tuple[int, list[int]]] = []  # an image, and which of `asked` share its row
    room = 0
    for number in sorted(range(len(asked)), key=lambda number: asked[number][0]):  # stable
        image, text = asked[number]
        size = len(text.prefix) + len(text.target)
        if not rows or rows[-1][0] != image or room < size:
            rows.append((image, []))
            room = ROOM
        rows[-1][1].append(number)
        room -= size
    rows.sort(key=lambda row: sum(len(asked[n][1].prefix) + len(asked[n][1].target) for n in row[1]))
    scores = torch.zeros(len(asked), dtype=torch.float64, device=memory.device)
    for at in range(0, len(rows), ROWS):
        here = rows[at : at + ROWS]
        packed = pack(
            [[asked[number][1] for number in numbers] for _, numbers in here],
            length=pipeline.policy.length,
            pad_id=pipeline.policy.pad_id,
            mask_id=decoder.mask_id,
        )
        batch = {name: field.to(memory.device) for name, field in packed.items()}
        images = torch.tensor([image for image, _ in here], device=memory.device)
        hidden = decoder(
            *(batch[field] for field in ("inputs", "positions", "segments", "full")),
            memory[images],
            None if valid is None else valid[images],
        ).flatten(0, 1)[batch["scored"]]
        targets = batch["targets"].flatten()[batch["scored"]]
        row = batch["scored"] // batch["inputs"].shape[1]
        first = torch.tensor([0, *(len(numbers) for _, numbers in here[:-1])], device=memory.device).cumsum(0)
        order = torch.tensor([number for _, numbers in here for number in numbers], device=memory.device)
        texts = order[first[row] + batch["segments"].flatten()[batch["scored"]]]
        scores.index_add_(0, texts, _log_probabilities(decoder, hidden, targets))
    return scores.tolist()


@torch.no_grad()
def blind_likelihoods(
    decoder: Decoder,
    memory: Tensor,
    asked: Sequence[tuple[int, Target]],
    pipeline: TextPipeline,
    valid: Tensor | None = None,
) -> list[float]:
    """log p(target) without its image: the mean of p(target | image) over a few other images, the same for all.

    Ours. CapPa compares with a decoder that is trained without images (Table 6); this is the language prior of the
    decoder at hand, by sampling, with no image that it was not trained to read.
    """
    shifts = sorted({round(len(memory) * (k + 1) / (OTHERS + 1)) for k in range(OTHERS)} - {0, len(memory)}) or [0]
    seen = [
        likelihoods(decoder, memory, [((image + shift) % len(memory), text) for image, text in asked], pipeline, valid)
        for shift in shifts
    ]
    return (torch.tensor(seen, dtype=torch.float64).logsumexp(0) - math.log(len(shifts))).tolist()


def _log_probabilities(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p of each target [M] float64, never holding the logits of more than a block of tokens."""
    size = max(1, BLOCK_BYTES // (4 * decoder.mask_id))
    parts = [
        decoder.vocabulary(some).float().log_softmax(-1).gather(1, wanted[:, None])[:, 0].double()
        for some, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float64)
