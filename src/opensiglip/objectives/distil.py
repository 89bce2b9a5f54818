"""Distillation: a trained model's prediction for every pair of image and text is the learner's target."""

from typing import Literal

from torch import Tensor

from opensiglip.losses.soft_pairs import soft_sigmoid_loss, soft_softmax_loss
from opensiglip.objectives.base import Encoded, Pairwise
from opensiglip.types import Batch, Reading

Kind = Literal["softmax", "sigmoid"]


class Distil(Pairwise):
    """Cross-entropy between a frozen teacher's and the learner's predictions for pairs, over the global batch.

    With z_ij = t x_i.y_j + b the learner's logits and Z_ij the teacher's:

        softmax    -1/2n sum_ij (softmax_j(Z_ij) log softmax_j(z_ij) + softmax_i(Z_ij) log softmax_i(z_ij))
        sigmoid    -1/n sum_ij (sigma(Z_ij) log sigma(z_ij) + sigma(-Z_ij) log sigma(-z_ij))

    n counts the examples that have a text; other examples form no pairs. softmax is open_clip's DistillClipLoss and
    ACED's second term (arXiv:2411.18674); it depends on neither model's b. The batch's `teacher_image` and
    `teacher_text` [B, E] are rows whose dot products are Z (training/curation/reference.py).
    """

    name = "distil"

    def __init__(self, kind: Kind = "softmax", *, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.kind = kind

    def readings(self) -> dict[str, Reading]:
        return {
            f"loss/{self.name}": Reading("It falls towards the entropy of the teacher's predictions, which is above 0.")
        }

    def live(self, batch: Batch) -> Tensor:
        return batch["has_text"].sum()

    def features(self, encoded: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        rows = [*encoded.pair(), encoded["teacher_image"], encoded["teacher_text"], encoded["has_text"]]
        return rows, [encoded.model.logit_scale.exp(), encoded.model.logit_bias]

    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        image, text, teacher_image, teacher_text, valid = rows
        scale, bias = shared
        if self.kind == "softmax":
            return soft_softmax_loss(image, text, scale, teacher_image, teacher_text, valid)
        return soft_sigmoid_loss(image, text, scale, bias, teacher_image, teacher_text, valid)
