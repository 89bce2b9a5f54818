"""A toy objective with everything that one may have: read CONTRIBUTING.md beside it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.data.text import TextPipeline
from opensiglip.models.sizes import Architecture
from opensiglip.objectives.base import Encoded, Notes, PerExample, Signal
from opensiglip.types import Batch

SMALLEST = 1e-3  # share of the captions that an entry is taken to be in at least, and to be missing from


class CaptionTokens(PerExample):
    """From the pooled image, which entries of the vocabulary are in the caption?

    L = -1/n sum_b 1/V sum_v log p(v in caption b), p = sigma(W x_b + log f_v / (1 - f_v)); n counts the examples that
    have a text. f is how often each entry occurs: f <- d f + (1 - d) mean_b (v in caption b) after each step.
    """

    name = "caption_tokens"

    def __init__(self, *, decay: float, weight: float = 1.0, start: float = 0.0) -> None:
        super().__init__(weight=weight, start=start)
        self.decay = decay
        self.head: nn.Linear
        self.frequency: Tensor

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        self.pad_id = pipeline.policy.pad_id
        self.head = nn.Linear(architecture.vision.width, len(pipeline))
        self.register_buffer("frequency", torch.full((len(pipeline),), 0.5))

    def live(self, batch: Batch) -> Tensor:
        return batch["has_text"].sum()

    def forward(self, encoded: Encoded) -> Tensor:
        pooled, ids, has_text = encoded.image().pooled, encoded["text"], encoded["has_text"]
        assert pooled is not None
        present = torch.zeros(len(ids), len(self.frequency), device=ids.device, dtype=self.frequency.dtype)
        present = present.scatter(1, ids, 1.0) * (torch.arange(len(self.frequency), device=ids.device) != self.pad_id)
        prior = self.frequency.clamp(SMALLEST, 1 - SMALLEST).logit()
        logits = self.head(pooled).to(present.dtype) + prior
        encoded.notes[f"{self.name}/present"] = (present * has_text[:, None]).sum(0) / has_text.sum().clamp(min=1)
        return (F.binary_cross_entropy_with_logits(logits, present, reduction="none").mean(1) * has_text).sum()

    @torch.no_grad()
    def after_step(self, notes: Notes) -> None:
        self.frequency.lerp_(notes[f"{self.name}/present"].to(self.frequency.dtype), 1 - self.decay)

    def health(self, notes: Notes) -> list[Signal]:
        most = float(self.frequency.max())
        alarm = None if most > SMALLEST else f"{self.name}: no entry occurs in any caption (are they empty?)"
        return [Signal(f"{self.name}/most_frequent", most, alarm, mend="other data", warn=2, stop=5)]
