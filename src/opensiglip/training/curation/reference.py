"""A reference: a frozen SigLIP that scores or teaches, and its opinion of a batch as two rows of numbers an example."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.fields.curation import SCORER, ReferenceImages, ReferenceTexts, named_rows
from opensiglip.data.fields.field import Field
from opensiglip.data.fields.frame import Frame, Geometry
from opensiglip.data.loader import to_device
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.float64 import moved
from opensiglip.models.model import Model
from opensiglip.objectives.base import Encoded, unit
from opensiglip.types import Batch, Features

BLOCK = 64  # examples encoded at once, whatever the batch: an example's rows are then the same in every batch


@dataclass
class Reference:
    """A model that is not trained, with what it reads of a visit."""

    model: Model
    pipeline: TextPipeline
    frame: Geometry  # that it sees images in
    fields: list[Field]  # beside the recipe's; none once its rows are read from a cache
    autocast: Callable[[], AbstractContextManager[Any]]
    writes: Sequence[str]  # how the names of its rows begin: SCORER, TEACHER or both
    role: str = "reference"  # or teacher: the flag that names it

    @classmethod
    def open(
        cls,
        name: str,
        frame: Geometry,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        writes: Sequence[str],
        role: str = "reference",
    ) -> "Reference":
        """The model of --reference or --teacher, beside a recipe's frame. Raises UserError where it can't be one."""
        found = open_reference(name, role)
        assert found.pipeline is not None and isinstance(found.model, Model)
        fields: list[Field] = [ReferenceTexts(found.pipeline, role)]
        if not same_view(frame, found.frame):
            fields.append(ReferenceImages(found.frame, role))
        model = found.model.to(device).requires_grad_(False)
        return cls(model, found.pipeline, found.frame, fields, autocast, writes, role)

    @property
    def early(self) -> bool:
        """Does it see a super-batch before examples are chosen from it?

        Where it scores; and where its images are padded part by part, so that rows can't be exchanged.
        """
        return SCORER in self.writes or not isinstance(self.frame, Frame)

    def embed(self, part: Batch, device: torch.device) -> Batch:
        """A part of a batch on the device with the reference's rows in the place of what it reads of a visit.

        Of each name in `writes`, ..._image and ..._text [B, E + 1], float32: (t x_i, b) and (y_j, 1), whose products
        are its logits t x_i.y_j + b; x and y of length 1.
        """
        part = {name: moved(values, device) for name, values in part.items()}
        if all(f"{begin}image" in part for begin in self.writes):  # off a cache
            return part
        own = f"for_{self.role}_"
        seen = _as_read(part, own)
        images = self.of_images({name: v for name, v in seen.items() if name.startswith("image")})
        texts = self.of_texts({"text": seen["text"]})
        kept = {name: values for name, values in part.items() if not name.startswith(own)}
        return kept | named_rows(images, texts, self.writes)

    def of_images(self, images: Batch) -> Tensor:
        """(t x, b) [n, E + 1] of fields "image..." of n images on the device, pixels as uint8 or a tower's states."""

        def rows(block: Batch) -> Tensor:
            found = unit(self._pooled(block, Encoded.image))
            return torch.cat([self.model.logit_scale.exp() * found, self.model.logit_bias.expand(len(found), 1)], 1)

        return _in_blocks(rows, images)

    def of_texts(self, texts: Batch) -> Tensor:
        """(y, 1) [n, E + 1] of the field "text", ids [n, L], or "text_states", a tower's, on the device."""

        def rows(block: Batch) -> Tensor:
            found = unit(self._pooled(block, Encoded.text))
            return torch.cat([found, found.new_ones(len(found), 1)], 1)

        return _in_blocks(rows, texts)

    def _pooled(self, block: Batch, tower: Callable[[Encoded], Features]) -> Tensor:
        self.model.eval()
        with self.autocast():
            pooled = tower(Encoded(self.model, to_device(block, self.model.logit_bias.device))).pooled
        assert pooled is not None
        return pooled


@torch.no_grad()
def _in_blocks(rows: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """`rows` of `BLOCK` examples at a time; the last one is there again in the place of those that are missing.

    A product of another height may be summed in another order.
    """
    size, found = len(next(iter(batch.values()))), []
    for at in range(0, size, BLOCK):
        places = torch.arange(at, at + BLOCK, device=next(iter(batch.values())).device).clamp(max=size - 1)
        found.append(rows({name: values[places] for name, values in batch.items()})[: size - at])
    return torch.cat(found)


def open_reference(name: str, role: str = "reference") -> Pretrained:
    """The model that scores or teaches beside the learner. Raises UserError where it does not compare by a sigmoid."""
    reference = Pretrained.open(name)
    if not isinstance(reference.model, Model) or reference.model.text is None:
        raise UserError(f"--{role} {name} does not compare images with texts; give a SigLIP, with both towers.")
    if not reference.model.architecture.logit_bias:
        raise UserError(
            f"--{role} {name} was trained with a softmax, whose loss is not defined for one pair; give a SigLIP."
        )
    if reference.pipeline is None:
        raise UserError(f"--{role} {name} comes without its tokenizer; fetch or export it again, whole.")
    return reference


def same_view(frame: Geometry, other: Geometry) -> bool:
    """Do two models see an image at the same size, by the same resizing?"""
    if not (isinstance(frame, Frame) and isinstance(other, Frame)):
        return False
    return replace(frame, crop_area=other.crop_area, flip=other.flip) == other


def _as_read(part: Batch, own: str) -> Batch:
    """A part's fields whose names begin with `own`, under the names by which towers ask for them.

    Images are the learner's where there are none of its own.
    """
    found = {name.removeprefix(own): values for name, values in part.items() if name.startswith(own)}
    shared = {name: v for name, v in part.items() if name.startswith("image") and name != "image_kept"}
    return found if "image" in found else shared | found
