"""Texts that grow: positions fitted so that short texts keep their embeddings.

SigLIP's text tower f reads padding and pools the last place (`Text`), so more padding changes the embedding of every
text. `stretch_positions` gives the first positions P'. Those behind the first 20 (`kept_places`) are then fitted to

    min E[1 - cos(f(x; P'), f(x; P))]    over texts x of at most 20 tokens, P being the old positions

Half of the texts are the data's own, half are random tokens. All other weights stay. This is ours: Long-CLIP
(arXiv:2403.15378) only stretches, and CLIP's tower reads no padding.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Siglip2TextConfig, Siglip2TextModel, SiglipTextConfig, SiglipTextModel

from opensiglip.data.example import Source
from opensiglip.data.text import TextPipeline, TextPolicy
from opensiglip.distributed import world
from opensiglip.models.resize import kept_places
from opensiglip.models.towers import Text
from opensiglip.progress import progress

POSITIONS = "tower.embeddings.position_embedding.weight"  # of a `Text`
MODELS: dict[type, Any] = {SiglipTextConfig: SiglipTextModel, Siglip2TextConfig: Siglip2TextModel}
STEPS, TEXTS = 200, 32  # texts of a step
READ, JUDGED = 2048, 256  # texts taken of the data at most; of texts that are not fitted on
AT_ONCE = 2**13  # tokens, as the memory check knows nothing of these steps
RATE = 0.1  # Adam's, in standard deviations of the embedded words


class Fit(NamedTuple):
    """Positions [L', D], and the mean cosine of old and new embeddings of texts not fitted on, before and after."""

    positions: Tensor
    before: float
    after: float


@dataclass(frozen=True)
class ShortTexts:
    """What keeps its embeddings where texts grow: texts of these sources, and random ones."""

    pipeline: TextPipeline
    sources: Sequence[Source]

    def keep(self, text: object, old: Mapping[str, Tensor], stretched: Tensor, device: torch.device) -> Tensor:
        """Positions [L', D] of a text tower whose texts grow; the first rank says what it does and what comes of it.

        text: the new network. old: the shorter one's tensors, named as a `Text` has them. stretched [L', D]: what
        comes back where texts do not grow, or the tower is another one: CLIP's and CoCa's read no padding.
        """
        if not isinstance(text, Text) or POSITIONS not in old or len(old[POSITIONS]) == len(stretched):
            return stretched
        short = of_state(text.tower.config, old, device)
        if short is None:
            return stretched
        say = print if world()[0] == 0 else lambda *_, **__: None
        sizes = f"{len(old[POSITIONS])} to {len(stretched)} tokens"
        say(f"text        grows from {sizes}: {STEPS} steps of {TEXTS} texts fit the added positions", flush=True)
        known = self.read(len(old[POSITIONS]))
        fit = fitted(short, stretched.to(device, torch.float32), self.pipeline.policy, known)
        say(f"text        short texts keep their embeddings to a cosine of {fit.after:.5f}; stretched {fit.before:.5f}")
        return fit.positions.to(stretched)

    def read(self, length: int) -> Tensor:
        """Ids [N, length] int64 of the sources' first texts, the same number of each, that are short."""
        pipeline, each = self.pipeline.with_length(length), READ // max(1, len(self.sources))
        texts = dict.fromkeys(text for source in self.sources for text in islice(source.texts(), each))
        ids = torch.tensor([pipeline.fixed(text).tolist() for text in texts], dtype=torch.long).reshape(-1, length)
        return ids[(ids[:, kept_places(length) :] == pipeline.policy.pad_id).all(1)]


def of_state(config: Any, state: Mapping[str, Tensor], device: torch.device) -> Text | None:
    """A text tower with these weights as float32; None if they are of another network, as with LoRA's."""
    config = deepcopy(config)
    config.max_position_embeddings = len(state[POSITIONS])
    with torch.device("meta"):
        text = Text(MODELS[type(config)](config))
    if text.state_dict().keys() != state.keys():
        return None
    text.load_state_dict({name: x.to(device, torch.float32) for name, x in state.items()}, assign=True)
    return text.eval().requires_grad_(False)


def fitted(short: Text, stretched: Tensor, policy: TextPolicy, known: Tensor) -> Fit:
    """Fit positions [L', D] float32 behind those that stay. Stretched ones come back if they keep other texts better.

    known [N, L]: ids of short texts, of which a quarter judge; random ones do if these are few. Every run draws the
    same.
    """
    words, length = short.tower.embeddings.token_embedding, short.tower.config.max_position_embeddings
    generator, stay = torch.Generator().manual_seed(0), kept_places(length)
    at_once = max(1, AT_ONCE // len(stretched))
    learned, held_out = known[len(known) // 4 :], known[: len(known) // 4][:JUDGED]
    if len(held_out) < TEXTS:
        learned, held_out = known[:0], random_texts(JUDGED, length, len(words.weight), policy, generator)

    def draw() -> Tensor:
        """Ids [TEXTS, L] of a step."""
        own = learned[torch.randint(len(learned), (TEXTS // 2,), generator=generator)] if len(learned) else learned
        return torch.cat([own, random_texts(TEXTS - len(own), length, len(words.weight), policy, generator)])

    def similarity(texts: Tensor, positions: Tensor) -> Tensor:
        """Cosine [B] of texts' [B, L] embeddings with more padding and the old ones."""
        texts = texts.to(positions.device)
        longer = F.pad(texts, (0, len(positions) - length), value=policy.pad_id)
        new, old = short.read(words(longer) + positions).pooled, short(texts).pooled
        assert new is not None and old is not None
        return F.cosine_similarity(new, old)

    @torch.no_grad()
    def judge(positions: Tensor) -> float:
        return torch.cat([similarity(texts, positions) for texts in held_out.split(min(TEXTS, at_once))]).mean().item()

    tail = stretched[stay:].clone().requires_grad_()
    rate = RATE * words.weight.std().item()
    optimizer = torch.optim.Adam([tail], rate)
    with torch.enable_grad():
        for step in progress(range(STEPS), desc="longer texts", unit="step", show=world()[0] == 0, leave=False):
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / STEPS)) / 2
            tail.grad = torch.zeros_like(tail)
            for part in draw().split(at_once):
                loss = (1 - similarity(part, torch.cat([stretched[:stay], tail]))).sum() / TEXTS
                tail.grad += torch.autograd.grad(loss, [tail])[0]
            optimizer.step()
    positions = torch.cat([stretched[:stay], tail.detach()])
    before, after = judge(stretched), judge(positions)
    return Fit(positions, before, after) if after > before else Fit(stretched, before, before)


def random_texts(count: int, length: int, vocabulary: int, policy: TextPolicy, generator: torch.Generator) -> Tensor:
    """Ids [count, length] int64: random tokens and the end, within the positions that stay, then padding."""
    ids = torch.randint(vocabulary, (count, length), generator=generator)
    ends, place = torch.randint(1, max(2, kept_places(length)), (count, 1), generator=generator), torch.arange(length)
    ids = torch.where(place < ends, ids, policy.pad_id)
    return ids.scatter_(1, ends, policy.eos_id)
