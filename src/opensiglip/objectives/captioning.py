"""Captioning losses. Cap, CapPa, LocCa and tasks-as-text are this one objective on different data."""

from torch import Tensor

from opensiglip.models.coca import Multimodal
from opensiglip.models.decoder import Decoder, caption_loss
from opensiglip.objectives.base import Encoded, PerExample
from opensiglip.types import Batch, Reading

TOKENS = Reading(
    "-log p of a token, averaged over each text. It falls. Its exponential is the perplexity, the effective number "
    "of tokens among which the decoder chooses."
)


class Caption(PerExample):
    """-1/S sum_s 1/|y_s| sum_i log p(y_si | what came before or [MASK], x).    (CapPa, Sec. 3; LocCa)

    S counts the sequences that exist: an image without regions does not count. Tasks, the shift, [MASK],
    packing and the 1/|y| weights are all fields of the batch (data/fields/captions.py), not of this class.
    """

    name = "caption"

    def readings(self) -> dict[str, Reading]:
        return {f"loss/{self.name}": TOKENS}

    def live(self, batch: Batch) -> Tensor:
        return batch["sequences"].sum()

    def forward(self, encoded: Encoded) -> Tensor:
        decoder = encoded.model.decoder
        assert isinstance(decoder, Decoder), "this recipe's architecture has no decoder of packed rows"
        return caption_loss(decoder, encoded.image(), encoded.batch)


class Continue(PerExample):
    """-1/S sum_s 1/|y_s| sum_i log p(y_si | y_s<i, x), computed from the text tower's states.    (CoCa, eq. 3)

    The contrastive loss encodes the same text, so the unimodal half costs nothing here. The paper prints the sum over
    tokens and does not state its normalisation; 1/|y| is ours.
    """

    name = "caption"

    def readings(self) -> dict[str, Reading]:
        return {f"loss/{self.name}": TOKENS}

    def live(self, batch: Batch) -> Tensor:
        return batch["has_text"].sum()

    def forward(self, encoded: Encoded) -> Tensor:
        decoder = encoded.model.decoder
        assert isinstance(decoder, Multimodal), "this recipe's architecture has no text decoder in halves"
        hidden = decoder.go_on(encoded.text().tokens[:, :-1], encoded.image().tokens)  # [B, L, D]
        scored = encoded["text_scored"]  # [M] places in the flattened texts that carry loss
        return decoder.vocabulary(
            hidden.flatten(0, 1)[scored], encoded["text"].flatten()[scored], encoded["text_weights"].flatten()[scored]
        )


class Answer(PerExample):
    """-1/S sum_s 1/|y_s| sum_i log p(y_si | y_s<i, prompt_s, x), by PaLI's encoder-decoder.    (PaLI, Sec. 3)

    Image tokens are computed once per image and read by each of its prompts; `owner` gives the image of a prompt.
    """

    name = "answer"

    def readings(self) -> dict[str, Reading]:
        return {f"loss/{self.name}": TOKENS}

    def live(self, batch: Batch) -> Tensor:
        return batch["sequences"].sum()

    def forward(self, encoded: Encoded) -> Tensor:
        pali = encoded.model.pali
        assert pali is not None, "this recipe's architecture has no encoder-decoder"
        memory = encoded.image().tokens[encoded["owner"]]  # [S, N, M]
        hidden = pali(memory, encoded["prompts"], encoded["answers_in"])  # [S, L, D]
        scored = encoded["answers_scored"]
        return pali.vocabulary(
            hidden.flatten(0, 1)[scored],
            encoded["answers"].flatten()[scored],
            encoded["answers_weights"].flatten()[scored],
        )
