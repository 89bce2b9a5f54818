"""Contrastive losses between images and texts."""

import math
from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.losses.pairwise import sigmoid_loss, softmax_loss
from opensiglip.models.initialisation import xavier_uniform_probe_
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.models.towers import Vision
from opensiglip.objectives.base import Encoded, Pairwise, PerExample, unit
from opensiglip.types import Batch, Reading

PAPERS_BIAS = "-10"  # SigLIP, Sec. 3.2


class Sigmoid(Pairwise):
    """Pairwise sigmoid loss over the global batch.    (SigLIP, Sec. 3.2)

    L = -1/n sum_ij log sigma(z_ij (t x_i.y_j + b)), t = exp(logit_scale), x and y L2-normalised, z_ij = 1 if i = j
    else -1; n counts the examples that have a text. Examples of one image (batch field "group") are not negatives of
    each other; with `multi_positive` the k of them are each other's positives, with weight 1/k.

    `image` and `text` name the batch fields that are compared. If an example has several views, the loss is the mean
    over views (SILC aligns each global view). If the batch has k texts per image, the image is repeated k times, so
    that each text is a positive once. With `probe_width` the term has its own pooling probe, so that it can summarise
    the image differently from the tower (TIPS: a second CLS token).

    If the networks have `nested` widths, L is added for the first w dimensions of x and y, normalised again, for each
    w, with the same t and b.    (Matryoshka, arXiv:2205.13147, Eq. 1 with c_m = 1)
    """

    name = "sigmoid"

    def __init__(
        self,
        *,
        image: str = "image",
        text: str = "text",
        probe_width: int | None = None,
        multi_positive: bool = False,
        name: str = "sigmoid",
        weight: float = 1.0,
        logit_bias: str = PAPERS_BIAS,
    ) -> None:
        """`logit_bias`: initial b, a number or "auto" (`start_bias`). Raises UserError on anything else."""
        super().__init__(weight=weight)
        self.image, self.text, self.multi_positive, self.name = image, text, multi_positive, name
        self.nested: tuple[int, ...] = ()
        self.logit_bias = logit_bias
        start_bias(logit_bias, 2)
        self.probe: nn.Parameter | None = None
        if probe_width is not None:  # initialised like the tower's own
            self.probe = nn.Parameter(xavier_uniform_probe_(torch.empty(1, 1, probe_width)))

    def check(self, architecture: Architecture) -> None:
        """Raises UserError where it has a probe of its own over an image tower of another make."""
        if self.probe is not None and architecture.foreign is not None and architecture.foreign.vision is not None:
            raise UserError(
                f"--vision: {self.name} pools images a second time, as only an OpenSigLIP tower can; leave --vision "
                "out, or take siglip2 or silc."
            )

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        self.nested = architecture.nested

    @torch.no_grad()
    def initialise(self, model: Model, batch_size: int, loaded: Collection[str]) -> None:
        """Set the bias, unless it is the paper's default and a checkpoint has loaded one."""
        if "logit_bias" not in loaded or self.logit_bias != PAPERS_BIAS:
            nn.init.constant_(model.logit_bias, start_bias(self.logit_bias, batch_size))

    def readings(self) -> dict[str, Reading]:
        return {
            f"loss/{self.name}": Reading(
                "It falls towards 0. A caption is compared with every image of the batch, so the loss depends on the "
                "batch size: compare runs of one size only."
            )
        }

    def live(self, batch: Batch) -> Tensor:
        return batch[f"has_{self.text}"].sum()

    def features(self, encoded: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        features, text = encoded.image(self.image), encoded.text(self.text).pooled
        image = features.pooled
        if self.probe is not None:
            assert isinstance(encoded.model.vision, Vision)
            image = encoded.model.vision.pool(features.tokens, self.probe, features.valid)
        assert image is not None and text is not None
        model = encoded.model
        image, text = unit(image), unit(text)
        if len(text) > len(image):  # several texts per image: repeat the image for each
            image = image.repeat_interleave(len(text) // len(image), 0)
        views = image.unflatten(0, (len(text), -1))  # [B, V, D]
        rows = [views, text, encoded[f"has_{self.text}"], *_group(encoded)]
        return rows, [model.logit_scale.exp(), model.logit_bias]

    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        views, text, *others = rows  # has_text, and the group if the batch has one

        def compared(views: Tensor, text: Tensor) -> Tensor:
            losses = [
                sigmoid_loss(view.contiguous(), text, *shared, *others, multi_positive=self.multi_positive)
                for view in views.unbind(1)
            ]
            return torch.stack(losses).mean()

        return at_widths(compared, views, text, self.nested)


class HardNegatives(PerExample):
    """Additional negatives of each image: texts that nearly match it.    (after NegCLIP, FG-CLIP)

    L = -1/n sum_ik log sigma(-(t x_i.y_ik + b)) over the hard texts k of image i, with t, b, x and n of `Sigmoid`. The
    sum of both losses is that of a matrix whose row i has these texts as additional columns.
    """

    name = "hard_negatives"

    def readings(self) -> dict[str, Reading]:
        return {
            f"loss/{self.name}": Reading(
                "The sum over an image's hard negatives. It falls towards 0 as the model tells them from the caption."
            )
        }

    def live(self, batch: Batch) -> Tensor:
        return batch["has_text"].sum()

    def forward(self, encoded: Encoded) -> Tensor:
        (image, text), has = encoded.pair("hard_text"), encoded["has_hard_text"]
        with torch.autocast(image.device.type, enabled=False):
            cosines = (image[:, None] * text.unflatten(0, has.shape)).sum(-1)
            logits = encoded.model.logit_scale.exp() * cosines + encoded.model.logit_bias
        return torch.where(has, F.softplus(logits), 0.0).sum()


def at_widths(
    compare: Callable[[Tensor, Tensor], Tensor], image: Tensor, text: Tensor, nested: Sequence[int]
) -> Tensor:
    """`compare` of unit embeddings [..., D], plus that of their first `nested` dimensions, normalised again."""
    total = compare(image, text)
    for width in nested:
        total = total + compare(*(F.normalize(x[..., :width], dim=-1) for x in (image, text)))
    return total


def start_bias(wanted: str, batch_size: int) -> float:
    """The initial bias: a number, or "auto" for log(p / (1 - p)) with p = 1 / batch, the share of pairs that match.

    SigLIP's -10 suits batches of 32k (log(1/22k) = -10); small batches need less. Raises UserError.
    """
    if wanted == "auto":
        return -math.log(max(1, batch_size - 1))
    try:
        bias = float(wanted)
    except ValueError:
        bias = math.nan
    if not math.isfinite(bias):
        raise UserError(f"--logit-bias {wanted!r} is neither a number nor auto.")
    return bias


class Softmax(Pairwise):
    """Softmax contrastive loss in both directions over the global batch.    (CLIP, Fig. 3)

    L = -1/2n sum_i (log softmax_j(t x_i.y_j) + log softmax_j(t x_j.y_i)) at j = i, t = exp(logit_scale), x and y
    L2-normalised; n counts the examples that have a text, and only those are candidates. Examples of one image (batch
    field "group") are not candidates for each other; with `multi_positive` they are, and the log-probabilities of all k
    are averaged. After each step t is clipped to `most`: 100 in CLIP, "found necessary to prevent training
    instability". `nested` widths work as in `Sigmoid`.
    """

    name = "softmax"

    def __init__(self, *, most: float = 100.0, multi_positive: bool = False, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.most, self.multi_positive = most, multi_positive
        self.nested: tuple[int, ...] = ()

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        self.nested = architecture.nested

    @torch.no_grad()
    def initialise(self, model: Model, batch_size: int, loaded: Collection[str]) -> None:
        nn.init.zeros_(model.logit_bias)  # has no effect in a softmax; a SigLIP checkpoint may have loaded one

    def readings(self) -> dict[str, Reading]:
        return {
            f"loss/{self.name}": Reading(
                "It starts near the logarithm of the batch size, which is chance, and falls towards 0."
            )
        }

    def live(self, batch: Batch) -> Tensor:
        return batch["has_text"].sum()

    def features(self, encoded: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        return [*encoded.pair(), encoded["has_text"], *_group(encoded)], [encoded.model.logit_scale.exp()]

    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        image, text, *others = rows  # has_text, and the group if the batch has one

        def compared(image: Tensor, text: Tensor) -> Tensor:
            return softmax_loss(image, text, *shared, *others, multi_positive=self.multi_positive)

        return at_widths(compared, image, text, self.nested)

    @torch.no_grad()
    def constrain(self, model: Model) -> None:
        model.logit_scale.clamp_(max=math.log(self.most))


def _group(encoded: Encoded) -> list[Tensor]:
    """The batch's field "group" [B] int64, equal for examples of one image; empty if all images differ."""
    return [encoded["group"]] if "group" in encoded.batch else []
