"""Captions chosen among a beam's texts with the help of a model that compares images with texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from opensiglip.errors import UserError
from opensiglip.inference.encoder import Encoder
from opensiglip.inference.text_generator import Prompt, TextGenerator
from opensiglip.types import Features

BEAMS, WEIGHT = 8, 2.0  # ours; weights from 1 to 4 differ little (docs/how-to/photographs.md)


def rerank(
    writer: TextGenerator,
    features: Features,
    prompts: Sequence[Prompt],
    judge: Encoder,
    embeddings: Tensor,
    *,
    images: Sequence[int] | None = None,
) -> list[str]:
    """Behind each prompt  argmax_y  log p(y | x) / |y| + WEIGHT cos(x, y)  of the `BEAMS` texts y of a beam search.

    p and |y|, the number of tokens, are the writer's; the cosine is the judge's, whose unit embeddings of the prompts'
    images are `embeddings` [P, E] float32. Prompt i is about image `images[i]` of `features`, by default image i. A
    prompt that leaves no room has an empty text. Raises UserError if the judge has no text tower.
    """
    check_judge(judge)
    places = list(range(len(prompts)) if images is None else images)
    texts = writer.beams(features, prompts, BEAMS, images=places)
    targets = [[writer.target_ids(prompt, text) for text in some] for prompt, some in zip(prompts, texts, strict=True)]
    asked = [(place, prompt, ids) for place, prompt, some in zip(places, prompts, targets, strict=True) for ids in some]
    scores = iter(writer.score(features, asked))
    best = []
    for embedding, some, ids in zip(embeddings, texts, targets, strict=True):
        means = torch.tensor([next(scores) / len(one) for one in ids])
        cosines = judge.encode_texts(some).cpu() @ embedding if some else torch.zeros(0)
        best.append(some[int((means + WEIGHT * cosines).argmax())] if some else "")
    return best


def check_judge(judge: Encoder) -> None:
    """Raises UserError if it can't compare captions with images."""
    if not judge.has_text:
        raise UserError(f"{judge.name} has no text tower to choose among captions by; give a run of align or siglip.")
