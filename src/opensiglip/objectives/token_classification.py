"""A linear layer predicts the caption's tokens from the image, in addition to a pairwise term.    (SuperCLIP)"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.decoder import Vocabulary
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.objectives.base import Encoded, Notes, PerExample
from opensiglip.types import Batch


class TokenClassification(PerExample):
    """Soft-label cross-entropy of the caption's tokens, weighted by their rarity.    (SuperCLIP, arXiv:2512.14480)

    L = -1/n sum_b sum_v y_bv log softmax(W norm(x_b) + c)_v, with x_b the mean of the image's patch tokens; y_bv is w_v
    where token v is in caption b and else 0, divided by its sum over v; n counts the examples that have a text.
    w_v = -log((f_v + 1/B) / (N + 2/B)): B is the global batch, N counts the steps before this one, f_v sums over them
    the share of the captions that v is in.

    Mean, norm, initialisation of W, the normalised K-hot labels, N and f are those of the authors' code (loss.py,
    superclip_model.py), where w_v = log((N + 1/B) / (f_v + 1/B)) and the step's own captions are in N and f. Three
    choices are ours: captions count from the next step on, so that no part of a batch waits for another; 2/B (Laplace)
    gives the first step weights; padding is not a token. W and its norm are used in training only.
    """

    name = "token_classification"

    def __init__(self, *, weight: float = 1.0, start: float = 0.0) -> None:
        super().__init__(weight=weight, start=start)
        self.batch_size = 1
        self.head: Vocabulary
        self.norm: nn.LayerNorm
        self.steps: Tensor  # N [1]
        self.captions: Tensor  # f [V]

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        """Raises UserError if the image tower comes from another library."""
        if architecture.foreign is not None and architecture.foreign.vision is not None:
            raise UserError("--token-weight needs an OpenSigLIP image tower; leave out --vision, or give 0.")
        self.pad_id, width = pipeline.policy.pad_id, architecture.vision.width
        self.norm, self.head = nn.LayerNorm(width), Vocabulary(width, len(pipeline))
        nn.init.normal_(self.head.weight, std=width**-0.5)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("captions", torch.zeros(len(pipeline)))

    def initialise(self, model: Model, batch_size: int, loaded: Collection[str]) -> None:
        self.batch_size = batch_size

    def live(self, batch: Batch) -> Tensor:
        return batch["has_text"].sum()

    def forward(self, encoded: Encoded) -> Tensor:
        image, texts = encoded.image(), encoded["has_text"]
        if image.valid is None:
            mean = image.tokens.mean(1)
        else:
            mean = (image.tokens * image.valid[..., None]).sum(1) / image.valid.sum(1, keepdim=True)
        ids = encoded["text"].sort(-1).values  # [B, L]
        once = torch.ones_like(ids, dtype=torch.bool)
        once[:, 1:] = ids[:, 1:] != ids[:, :-1]
        once &= (ids != self.pad_id) & texts[:, None]
        labels = torch.where(once, self.rarity()[ids], 0.0)
        labels /= labels.sum(1, keepdim=True).clamp(min=torch.finfo(labels.dtype).tiny)
        found = torch.zeros_like(self.captions).index_add_(0, ids.flatten(), once.flatten().to(labels.dtype))
        encoded.notes[f"{self.name}/captions"] = torch.cat([found, texts.sum()[None].to(found.dtype)])
        loss: Tensor = self.head(self.norm(mean), ids, labels)
        return loss

    def rarity(self) -> Tensor:
        """w [V], positive."""
        return -((self.captions + 1 / self.batch_size) / (self.steps + 2 / self.batch_size)).log()

    @torch.no_grad()
    def after_step(self, notes: Notes) -> None:
        """Count the step's captions. The ratios in a mean over parts and ranks are those of the whole batch."""
        note = notes[f"{self.name}/captions"].to(self.captions.dtype)
        self.captions += note[:-1] / note[-1].clamp(min=torch.finfo(note.dtype).tiny)
        self.steps += note[-1] > 0
