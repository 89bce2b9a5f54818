"""Read texts off an image. Cap, CapPa, LocCa and tasks-as-text are this one objective on different data."""

from torch import Tensor

from opensiglip.objectives.base import Encoded, PerExample
from opensiglip.types import Batch


class Caption(PerExample):
    """-1/S sum_s 1/|y_s| sum_i log p(y_si | what came before or [MASK], x).    (CapPa, Sec. 3; LocCa)

    S counts the sequences that exist: an image without regions leaves the denominator. Tasks, the shift, [MASK],
    packing and the 1/|y| weights are all fields of the batch (data/captions.py); so this knows none of them.
    """

    name = "caption"

    def live(self, batch: Batch) -> Tensor:
        return batch["sequences"].sum()

    def forward(self, encoded: Encoded) -> Tensor:
        image, decoder = encoded.image(), encoded.model.decoder
        assert decoder is not None, "this recipe's architecture has no decoder"
        row = [encoded[field] for field in ("inputs", "positions", "segments", "full")]
        hidden = decoder(*row, image.tokens, image.valid)  # [B, R, D]
        scored = encoded["scored"]  # [M] places in the flattened rows that carry loss
        return decoder.vocabulary(
            hidden.flatten(0, 1)[scored],
            encoded["targets"].flatten()[scored],
            encoded["weights"].flatten()[scored],
        )
