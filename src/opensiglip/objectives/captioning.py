"""Read texts off an image. Cap, CapPa, LocCa and tasks-as-text are this one objective on different data."""

from torch import Tensor

from opensiglip.models.decoder import Decoder
from opensiglip.objectives.base import Encoded, PerExample
from opensiglip.types import Batch, Features


class Caption(PerExample):
    """-1/S sum_s 1/|y_s| sum_i log p(y_si | what came before or [MASK], x).    (CapPa, Sec. 3; LocCa)

    S counts the sequences that exist: an image without regions leaves the denominator. Tasks, the shift, [MASK],
    packing and the 1/|y| weights are all fields of the batch (data/captions.py); so this knows none of them.
    """

    name = "caption"

    def live(self, batch: Batch) -> Tensor:
        return batch["sequences"].sum()

    def forward(self, encoded: Encoded) -> Tensor:
        decoder = encoded.model.decoder
        assert decoder is not None, "this recipe's architecture has no decoder"
        return caption_loss(decoder, encoded.image(), encoded)


def caption_loss(decoder: Decoder, image: Features, batch: Batch | Encoded) -> Tensor:
    """The sum over a batch's sequences, of any decoder on any image tokens [B, N, D]."""
    row = [batch[field] for field in ("inputs", "positions", "segments", "full")]
    hidden = decoder(*row, image.tokens, image.valid)  # [B, R, D]
    scored = batch["scored"]  # [M] places in the flattened rows that carry loss
    return decoder.vocabulary(
        hidden.flatten(0, 1)[scored],
        batch["targets"].flatten()[scored],
        batch["weights"].flatten()[scored],
    )
