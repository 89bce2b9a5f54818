"""Is this text the text of this image?"""

import torch.nn.functional as F
from torch import Tensor

from opensiglip.fused import sigmoid_loss
from opensiglip.objectives.base import Encoded, Pairwise
from opensiglip.types import Batch


class Sigmoid(Pairwise):
    """One yes-or-no question per pair of image and text, over the global batch.    (SigLIP, Sec. 3.2)

    L = -1/n sum_ij log sigma(z_ij (t x_i.y_j + b)), t = exp(logit_scale), x and y L2-normalised, z_ij = 1 if i = j
    else -1; n counts the examples that have a text.
    """

    name = "sigmoid"

    def live(self, batch: Batch) -> Tensor:
        return batch["has_text"].sum()

    def features(self, encoded: Encoded) -> tuple[list[Tensor], list[Tensor]]:
        image, text = encoded.image().pooled, encoded.text().pooled
        assert image is not None and text is not None
        model = encoded.model
        rows = [F.normalize(x.float() if x.itemsize < 4 else x, dim=-1) for x in (image, text)]  # [B, D] each
        return [*rows, encoded["has_text"]], [model.logit_scale.exp(), model.logit_bias]

    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        image, text, has_text = rows
        scale, bias = shared
        return sigmoid_loss(image, text, scale, bias, has_text)
