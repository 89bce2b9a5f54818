"""Regions and phrases compared: which phrase names what is in this box?    (after FG-CLIP)"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.losses.pairwise import sigmoid_loss
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.models.towers import Vision, select
from opensiglip.objectives.base import Encoded, Pairwise, unit
from opensiglip.objectives.contrastive import start_bias
from opensiglip.types import Batch, Patches, Reading


class RegionPairs(Pairwise):
    """One yes-or-no question per pair of region and phrase, over the global batch's regions.

    L = -1/n sum_ij log sigma(z_ij (t x_i.y_j + b)), z_ij = 1 if i = j else -1. y_j is the text tower's embedding of
    region j's phrase. x_i = sum_p a_ip f(h_p) / sum_p a_ip over the image's patch tokens h_p, a_ip the area that patch
    p and box i share, and f the way of a patch into the texts' space that `Encoder.dense` goes too (`Vision.alone`); x
    and y L2-normalised. n counts the regions. Regions of equal phrases are no negatives of each other; their columns
    are equal, so that each of the k counting as a positive of weight 1/k would be the same sum.

    Pooling behind f, with a temperature of its own, is FG-CLIP 2's (arXiv:2510.10921; code, fgclip2.py). Ours: a
    sigmoid over all ranks for its softmax over one; exact areas for RoIAlign's samples; its phrases' own head is left
    out, since the text tower's embeddings are what is served; b, which starts at log(p / (1 - p)), p = 1 / batch. Of
    images that are read in part (`--keep-tokens`) the patches that are read count, and regions without one do not.
    """

    name = "region_pairs"

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.scale = nn.Parameter(torch.full((1,), math.log(10.0)))  # t = exp(scale), as SigLIP's starts
        self.bias = nn.Parameter(torch.zeros(1))
        self.patch = 1

    def check(self, architecture: Architecture) -> None:
        """Raises UserError beside an image tower of another make."""
        if architecture.foreign is not None and architecture.foreign.vision is not None:
            raise UserError("--region-pairs needs an OpenSigLIP image tower; leave out --vision, or give 0.")

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        self.patch = architecture.patch

    @torch.no_grad()
    def initialise(self, model: Model, batch_size: int, loaded: Collection[str]) -> None:
        nn.init.constant_(self.bias, start_bias("auto", batch_size))

    def readings(self) -> dict[str, Reading]:
        return {
            f"loss/{self.name}": Reading(
                "It falls towards 0 as the patches in a box are told from the batch's other phrases. Phrases that fit "
                "other images' regions too keep it above."
            )
        }

    def live(self, batch: Batch) -> Tensor:
        return (overlaps(batch, self.patch).sum(-1) > 0).sum()

    def features(self, encoded: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        vision, image, text = encoded.model.vision, encoded.image(), encoded.text("region_text").pooled
        assert isinstance(vision, Vision) and text is not None
        areas = overlaps(encoded.batch, self.patch)  # [B, K, N]
        total = areas.sum(-1, keepdim=True)
        patches = vision.alone(image.tokens)
        with torch.autocast(patches.device.type, enabled=False):
            regions = areas / total.clamp(min=1e-9) @ patches.to(areas.dtype)
        valid = total[..., 0] > 0
        rows = [unit(regions).flatten(0, 1), unit(text), valid.flatten(), encoded["region_phrase"].flatten()]
        return rows, [self.scale.exp(), self.bias]

    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        regions, texts, valid, phrases = rows
        scale, bias = shared
        return sigmoid_loss(regions, texts, scale, bias, valid, phrases)


def overlaps(batch: Batch, patch: int) -> Tensor:
    """Areas [B, K, N], in patches, that the regions' boxes share with the image's patches that are read.

    0 for padding, of regions and of patches.
    """
    row, column, read = places(batch, patch)
    left, top, right, bottom = (batch["region_box"] / patch)[..., None].unbind(2)  # [B, K, 1]
    row, column = row[:, None], column[:, None]
    down = (torch.minimum(bottom, row + 1) - torch.maximum(top, row)).clamp(min=0)
    across = (torch.minimum(right, column + 1) - torch.maximum(left, column)).clamp(min=0)
    return down * across * (batch["has_region"][..., None] & read[:, None])


def places(batch: Batch, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column [B, N] int64 of each patch of "image" that the tower reads, and whether it is one or padding."""
    if "image_shapes" in batch:
        patches = Patches.of(batch, "image")
        read, wide = patches.valid, patches.shapes[:, 1:]
        number = (read.cumsum(1) - 1).clamp(min=0)
    else:
        image = batch["image"]
        rows, columns = image.shape[-2] // patch, image.shape[-1] // patch
        number = torch.arange(rows * columns, device=image.device).expand(len(image), -1)
        read, wide = torch.ones_like(number, dtype=torch.bool), torch.full_like(number[:, :1], columns)
    if "image_kept" in batch:
        kept = batch["image_kept"].flatten(0, 1)
        number, read = (select(x[..., None], kept)[..., 0] for x in (number, read))
        read = read & (kept >= 0)
    return number // wide, number % wide, read
