"""Captions trained by the figure that they are judged by: self-critical sequence training with CIDEr-D."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from zlib import crc32

import torch
from torch import Tensor, nn

from opensiglip.data.fields.captions import PREFIXES, Ids, Target, pack
from opensiglip.data.fields.references import NOTHING, SAMPLES
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.metrics.text import NGram, Weighed, n_grams, words
from opensiglip.inference.generate import Decoding, generate
from opensiglip.models.decoder import Decoder, caption_loss
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.objectives.base import Encoded, Notes, PerExample
from opensiglip.types import Batch, Features, Reading

BUCKETS = 1_048_573  # of n-grams; the largest prime below 2^20. Two in a bucket are counted as one
Words = tuple[str, ...]
END = ""  # the word behind a text that ended; no other word is empty


class SelfCritical(PerExample):
    """-1/n sum_b 1/K sum_k A_bk log p(y_bk | x_b),  A_bk = r(y_bk) - mean_{j != k} r(y_bj),  y_bk ~ p(. | x_b)

    Its gradient is that of the mean reward r of K captions drawn from the decoder itself (Rennie et al.,
    arXiv:1612.00563, Sec. 3; there the greedy caption's reward takes the place of the others' mean, which is Luo's,
    arXiv:2003.09971). r is CIDEr-D against the image's captions, over the words that evaluation compares and the end of
    the text, without which captions stop too early. n counts the images that have a caption. The loss says nothing; the
    reward should rise.

    How rare an n-gram is, -log of the share of images whose captions have it, is counted from the first step with this
    term on. It is 0 for all in that step, which therefore changes nothing.
    """

    name = "self_critical"
    generates = "--cider-weight"

    def __init__(self, *, prefix: bool, weight: float = 1.0, start: float = 0.0) -> None:
        """`prefix`: captions go on from "Cap:", as in LocCa."""
        super().__init__(weight=weight, start=start)
        self.prefix, self.batch_size = prefix, 1
        self.steps: Tensor  # N [1]: steps counted
        self.images: Tensor  # [BUCKETS]: sum over them of the share of images whose captions have an n-gram

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        self.pipeline = pipeline
        self.begin: Ids = pipeline.ids(PREFIXES["cap"]) if self.prefix else ()
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("images", torch.zeros(BUCKETS))

    def initialise(self, model: Model, batch_size: int, loaded: Collection[str]) -> None:
        self.batch_size = batch_size

    def readings(self) -> dict[str, Reading]:
        return {
            f"loss/{self.name}": Reading("Advantage times -log p of drawn captions. Its value has no meaning."),
            f"{self.name}/reward": Reading("CIDEr-D of captions drawn in training against the image's own. It rises."),
        }

    def live(self, batch: Batch) -> Tensor:
        return (batch["references"][:, 0, 0] != NOTHING).sum()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # texts are drawn and compared in Python
    def forward(self, encoded: Encoded) -> Tensor:
        decoder, image = encoded.model.decoder, encoded.image()
        assert isinstance(decoder, Decoder), "this recipe's architecture has no decoder of packed rows"
        references = [
            [tuple(token for token in ids if token != NOTHING) for ids in some if ids[0] != NOTHING]
            for some in encoded["references"].tolist()
        ]
        with without_dropout(decoder):  # the decoder that is rewarded is the one that will be used
            texts = self.sample(decoder, image, encoded["uniforms"])
            rewards, found = self.compare(
                [[self.words(text) for text in some] for some in texts],
                [[self.words(text) for text in some] for some in references],
            )
            live = self.live(encoded.batch)
            encoded.notes |= {
                f"{self.name}/reward": rewards.mean(1).sum() / live.clamp(min=1),
                f"{self.name}/found": torch.cat([found, torch.tensor([float(live)])]).to(live.device),
            }
            rows = [[Target(self.begin, text) for text in some] for some in texts]
            pad_id, mask_id = self.pipeline.policy.pad_id, len(self.pipeline)
            batch = pack(rows, length=decoder.length, pad_id=pad_id, mask_id=mask_id)
            advantages = (rewards - rewards.mean(1, keepdim=True)) * SAMPLES / (SAMPLES - 1)
            of_tokens = advantages.gather(1, batch["segments"].clamp(min=0)) / SAMPLES
            batch["weights"] = of_tokens * (batch["weights"] > 0)
            return caption_loss(decoder, image, {name: field.to(live.device) for name, field in batch.items()})

    def sample(self, decoder: Decoder, image: Features, uniforms: Tensor) -> list[list[Ids]]:
        """K captions of each image, with their eos if they end."""
        begins, most = [self.begin] * len(uniforms), Decoding(max_new_tokens=uniforms.shape[2])
        room = min(decoder.length - len(self.begin), uniforms.shape[2])  # fewer while texts are short (--length)
        drawn = generate(decoder, image.tokens, begins, self.pipeline, most, uniforms=uniforms, valid=image.valid)
        ended = [(*ids, self.pipeline.policy.eos_id)[:room] for ids in drawn]
        return [ended[at : at + SAMPLES] for at in range(0, len(ended), SAMPLES)]

    def words(self, ids: Ids) -> Words:
        """The words of a text, and END if it ended."""
        ended = ids[-1:] == (self.pipeline.policy.eos_id,)
        return (*words(self.pipeline.canonical(self.pipeline.text(ids))), *[END] * ended)

    def compare(self, texts: Sequence[Sequence[Words]], references: Sequence[Sequence[Words]]) -> tuple[Tensor, Tensor]:
        """Rewards [B, K] float32, 0 without references; [BUCKETS], the number of images with an n-gram in theirs."""
        theirs = [[n_grams(one) for one in some] for some in references]
        ours = [[n_grams(text) for text in some] for some in texts]
        grams = {gram for some in (*theirs, *ours) for one in some for gram in one}
        buckets = {gram: bucket(gram) for gram in grams}
        places = torch.tensor([buckets[gram] for gram in grams], device=self.images.device)
        share = (self.images[places] / self.steps).clamp(min=1 / (self.batch_size * max(1.0, float(self.steps))))
        rarity = dict(zip(grams, share.log().neg().tolist(), strict=True)) if self.steps else dict.fromkeys(grams, 0.0)
        rewards = torch.zeros(len(texts), SAMPLES)
        found = torch.zeros(BUCKETS)
        for row, (written, own) in enumerate(zip(ours, theirs, strict=True)):
            weighed = [Weighed.of(counts, rarity.__getitem__) for counts in own]
            for column, counts in enumerate(written if own else ()):
                text = Weighed.of(counts, rarity.__getitem__)
                rewards[row, column] = sum(text.likeness(one) for one in weighed) / len(weighed)
            found[list({buckets[gram] for counts in own for gram in counts})] += 1
        return rewards, found

    @torch.no_grad()
    def after_step(self, notes: Notes) -> None:
        """Count the step's images. The ratios in a mean over parts and ranks are those of the whole batch."""
        note = notes[f"{self.name}/found"].to(self.images.dtype)
        self.images += note[:-1] / note[-1].clamp(min=torch.finfo(note.dtype).tiny)
        self.steps += note[-1] > 0


def bucket(gram: NGram) -> int:
    """Where an n-gram of words is counted; the same on all ranks."""
    place = 0
    for word in gram:
        place = (place * 1_000_003 + crc32(str(word).encode()) + 1) % BUCKETS
    return place


@contextmanager
def without_dropout(decoder: nn.Module) -> Iterator[None]:
    """Nothing of the decoder is dropped."""
    training = decoder.training
    decoder.eval()
    try:
        yield
    finally:
        decoder.train(training)
