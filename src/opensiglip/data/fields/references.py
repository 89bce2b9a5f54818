"""What rewards captions that a decoder writes while it trains: the image's own, and the numbers that draw them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from opensiglip.data.fields.captions import Ids
from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

SAMPLES = 5  # captions of an image that are drawn and compared; recalled as Luo's number (arXiv:2003.09971)
NOTHING = -1  # behind a reference: no token's id, as SigLIP's tokenizer pads with its end

Drawn = tuple[list[Ids], np.ndarray]


class References(Field):
    """references [B, R, T] int64: all captions of the visit's language, each ends with eos, then NOTHING; uniforms
    [B, SAMPLES, L] float64 in [0, 1): a number for each token of each caption that is drawn, from `start` on.
    """

    def __init__(self, *, start: float = 0.0) -> None:
        self.start = start

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Drawn:
        texts = [] if visit.caption is None else [visit.caption.text, *visit.other_texts]
        room, eos = pipeline.policy.length - 1, pipeline.policy.eos_id
        return [(*pipeline.ids(f" {text}")[:room], eos) for text in texts], rng.random((SAMPLES, room + 1))

    def collate(self, drawn: Sequence[Drawn], pipeline: TextPipeline) -> Batch:
        most = max(1, max(len(texts) for texts, _ in drawn))
        rows = [torch.tensor(ids) for texts, _ in drawn for ids in [*texts, *[(NOTHING,)] * (most - len(texts))]]
        padded = pad_sequence(rows, batch_first=True, padding_value=NOTHING)
        return {
            "references": padded.unflatten(0, (len(drawn), most)),
            "uniforms": torch.from_numpy(np.stack([numbers for _, numbers in drawn])),
        }
