"""Is this text the text of this image?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensiglip.fused import sigmoid_loss
from opensiglip.models.towers import Vision
from opensiglip.objectives.base import Encoded, Pairwise
from opensiglip.types import Batch


class Sigmoid(Pairwise):
    """One yes-or-no question per pair of image and text, over the global batch.    (SigLIP, Sec. 3.2)

    L = -1/n sum_ij log sigma(z_ij (t x_i.y_j + b)), t = exp(logit_scale), x and y L2-normalised, z_ij = 1 if i = j
    else -1; n counts the examples that have a text.

    `image` and `text` name the batch fields that are compared; where an example has several views, each is compared by
    itself and the mean counts (SILC aligns each global view). With `probe_width` the image is pooled by a probe of this
    term's own, so that it may say other things of the image than the tower's (TIPS has a second CLS token for that).
    """

    name = "sigmoid"

    def __init__(
        self,
        *,
        image: str = "image",
        text: str = "text",
        probe_width: int | None = None,
        name: str = "sigmoid",
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        self.image, self.text, self.name = image, text, name
        self.probe = None if probe_width is None else nn.Parameter(torch.randn(1, 1, probe_width))
        if self.probe is not None:
            nn.init.xavier_uniform_(self.probe)  # as the tower's own

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
        image, text = (F.normalize(x.float() if x.itemsize < 4 else x, dim=-1) for x in (image, text))
        views = image.unflatten(0, (len(text), -1))  # [B, V, D]
        return [views, text, encoded[f"has_{self.text}"]], [model.logit_scale.exp(), model.logit_bias]

    def compare(self, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
        views, text, has_text = rows
        scale, bias = shared
        losses = [sigmoid_loss(view.contiguous(), text, scale, bias, has_text) for view in views.unbind(1)]
        return torch.stack(losses).mean()
