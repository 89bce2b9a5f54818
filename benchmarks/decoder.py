"""The decoder on several texts an image: packed along one row, against a padded pass for each text."""

from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import flops
from benchmarks.captions import packed, padded, real_tokens, texts
from benchmarks.measure import Row, Variant, agree, compare, positive, start
from benchmarks.report import report
from opensiglip.data.fields.captions import Target
from opensiglip.errors import UserError
from opensiglip.models.decoder import Decoder
from opensiglip.models.sizes import Shape
from opensiglip.types import Batch

PEER = "a padded pass for each text, naive head"


def bench(
    images: int = 16,
    tokens: int = 196,
    length: int = 64,
    width: int = 384,
    depth: int = 6,
    vocabulary: int = 32_000,
    regions: tuple[int, ...] = (1,),
    rounds: int = 3,
    device: str = "auto",
    out: Path = Path("runs/bench"),
) -> None:
    """Decoder and head on the texts of images, forward and backward in float32: packed against padded rows.

    An image has a caption and, for each region, a referring box and a grounded caption. "exact" has half of the
    captions in parallel, over their row's full length of [MASK]; "packed" has none.

    Args:
        images: images per batch.
        tokens: tokens per image.
        length: length of a padded row.
        width: width of the decoder.
        depth: layers of the decoder.
        vocabulary: vocabulary size of the head.
        regions: regions per image; several values give a curve.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        out: folder for the JSON and the plot.
    """
    positive(images=images, tokens=tokens, length=length, width=width, depth=depth, vocabulary=vocabulary)
    positive(rounds=rounds)
    if not regions or min(regions) < 0:
        raise UserError(f"--regions {' '.join(map(str, regions))} is out of range; give numbers of 0 or more.")
    place, rows = start(device), list[Row]()
    torch.manual_seed(0)
    decoder = Decoder(Shape(width, depth, 4 * width, max(1, width // 64)), vocabulary, length, width).to(place)
    torch.nn.init.normal_(decoder.vocabulary.weight, std=width**-0.5)
    memory = torch.randn(images, tokens, width, device=place, requires_grad=True)
    for count, (case, parallel) in product(regions, (("exact", 0.5), ("packed", 0.0))):
        tasks = 1 + 2 * count
        variants = packed_and_padded(decoder, memory, texts(images, tasks, length, vocabulary, parallel=parallel))
        rows += compare(f"{case}, {tasks} texts", variants, PEER, place, rounds, torch.float32)
    report("decoder", rows, out, place)


def packed_and_padded(decoder: Decoder, memory: Tensor, drawn: list[list[Target]]) -> list[Variant]:
    """Ours on each image's texts in one row, and a padded pass for each text, on image tokens `memory` [B, N, D]."""
    place, length, vocabulary, leaves = memory.device, decoder.length, decoder.mask_id, [memory, *decoder.parameters()]
    one = {name: x.to(place) for name, x in packed(drawn, length, vocabulary).items()}
    many = [{name: x.to(place) for name, x in part.items()} for part in padded(drawn, length, vocabulary)]

    def ours() -> tuple[Tensor, ...]:
        hidden = _hidden(decoder, one, memory, one["real"]).flatten(0, 1)[one["scored"]]
        loss = decoder.vocabulary(
            hidden, one["targets"].flatten()[one["scored"]], one["weights"].flatten()[one["scored"]]
        )
        return loss, *torch.autograd.grad(loss, leaves)

    def plain() -> tuple[Tensor, ...]:
        loss = memory.new_zeros(())
        for part in many:
            logits = decoder.vocabulary(_hidden(decoder, part, memory).flatten(0, 1))
            each = F.cross_entropy(logits, part["targets"].flatten(), reduction="none")
            loss = loss + (part["weights"].flatten() * each).sum()
        return loss, *torch.autograd.grad(loss, leaves)

    gap = agree({PEER: plain(), "opensiglip": ours()}, PEER, 1e-3)["opensiglip"]
    places = len(drawn) * len(drawn[0]) * length
    facts = {"off by": gap, "real tokens": f"{real_tokens(drawn) / places:.0%}"}
    floor = flops.reading(decoder.shape, memory.shape[2], memory.shape[1], one, vocabulary)
    return [Variant("opensiglip", ours, floor, facts=facts), Variant(PEER, plain, floor)]


def _hidden(decoder: Decoder, batch: Batch, memory: Tensor, real: Tensor | None = None) -> Tensor:
    return decoder(batch["inputs"], batch["positions"], batch["segments"], batch["full"], memory, real=real)
