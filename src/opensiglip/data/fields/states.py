"""Fields that read a frozen tower's output from a cache, in the place of pixels and ids."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opensiglip.data.fields.field import Field, Texts, Visit
from opensiglip.data.fields.mirror import mirror_tokens
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

IMAGE, TEXTS = "image_states", "text_states"  # extras of an example that a cache gives


class ImageStates(Field):
    """image_states [B, T, D]: what the image head reads, instead of `Images`."""

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> np.ndarray:
        states: np.ndarray = visit.example.extras[IMAGE]
        return mirror_tokens(states) if visit.mirrored else states

    def collate(self, drawn: Sequence[np.ndarray], pipeline: TextPipeline) -> Batch:
        return {IMAGE: as_tensor(np.stack(drawn))}


class TextStates(Texts):
    """text_states [B, 1, D]: what the text head reads of the visit's captions, instead of ids; else as `Texts`."""

    def read(self, visit: Visit, text: str, pipeline: TextPipeline) -> np.ndarray:
        states: np.ndarray = visit.example.extras[TEXTS][text]
        return states

    def batch(self, texts: np.ndarray) -> Batch:
        return {TEXTS: as_tensor(texts)[:, None]}


def as_tensor(states: np.ndarray) -> Tensor:
    """float32, or bfloat16 where numpy, which has no such type, holds it as uint16."""
    tensor = torch.from_numpy(states)
    return tensor.view(torch.bfloat16) if states.dtype == np.uint16 else tensor


def as_array(states: Tensor) -> np.ndarray:
    """The inverse of `as_tensor`."""
    states = states.cpu().contiguous()
    array: np.ndarray = (states.view(torch.uint16) if states.dtype == torch.bfloat16 else states).numpy()
    return array
