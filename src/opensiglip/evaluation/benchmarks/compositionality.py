"""Compositionality: is the true caption preferred to those that differ from it in one thing?"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample, hits_and_misses
from opensiglip.evaluation.benchmarks.contrasts import Contrast, contrasts
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.inference.predictor import Predictor

ELSEWHERE = 200  # drawings, the first met, of which one takes another's place

Numbered = Sequence[tuple[int, Contrast]]  # an example's place, and one of its contrasts


def compositionality(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """SugarCrepe's question: of a caption and its hard negatives, which does the model score highest?

    By image-text similarity (arXiv:2306.14610) and by summed log-likelihood under the decoder (CapPa, Sec. 4; recipes
    2.8: right if score(positive) > score(negative) for every negative, so a tie is wrong), always beside the same
    decoder blind: on sets like ARO a decoder that sees nothing nearly wins. Scenes give pairs with exact truth
    (contrasts.py); rows of a folder name theirs as `negative_caption`, one text or a list of them (ARO-Order has four).
    Intervals: bootstrap over images.
    """
    by_likelihood = model.has_decoder and bool({"cap", "caption"} & set(model.tasks))
    if not by_likelihood and (not model.has_text or examples.pooled is None):
        raise NotApplicable(
            "the model has neither a text tower beside its image tower nor a decoder that writes captions"
        )
    languages = context.caption_languages(examples)
    drawn = [example.extras["scene_plan"][0] for example in examples.examples if "scene_plan" in example.extras]
    elsewhere = list({placed.code: placed for scene in drawn for placed in scene}.values())[:ELSEWHERE]
    pairs = [
        (place, pair)
        for place, example in enumerate(examples.examples)
        for pair in contrasts(example, elsewhere, languages, context.seed + place)
    ]
    if not pairs:
        raise NotApplicable("no example has a caption with a negative_caption")
    ways = _by_similarity(model, examples, pairs) | (_by_likelihood(model, examples, pairs) if by_likelihood else {})
    owners = [place for place, _ in pairs]
    chance = [1 / (1 + len(pair.negatives)) for _, pair in pairs]
    metrics: dict[str, Any] = {"pairs": len(pairs), "images": len(set(owners)), "chance": sum(chance) / len(chance)}
    for way, margins in ways.items():
        metrics |= mean_with_interval(way, [margin > 0 for margin in margins], owners)
    kinds = {}
    for kind in dict.fromkeys(pair.kind for _, pair in pairs):
        here = [number for number, (_, pair) in enumerate(pairs) if pair.kind == kind]
        kinds[kind] = {"pairs": len(here)}
        for way, margins in ways.items():
            kinds[kind] |= mean_with_interval(way, [margins[n] > 0 for n in here], [owners[n] for n in here])
    shown = [margin > 0 for margin in next(iter(ways.values()))]
    return BenchmarkResult(
        metrics | {"kinds": kinds},
        [
            Sample(
                examples.examples[owners[number]].image,
                shown[number],
                f"Which is true ({pair.kind})?",
                (pair.caption,) if shown[number] else pair.negatives,
                (pair.caption,),
            )
            for number in hits_and_misses(shown)
            for pair in [pairs[number][1]]
        ],
    )


def _by_similarity(model: Predictor, examples: EncodedExamples, pairs: Numbered) -> dict[str, list[float]]:
    """By way the margin of each pair: the caption's score less the best negative's."""
    if not model.has_text or examples.pooled is None:
        return {}
    texts = [text for _, pair in pairs for text in (pair.caption, *pair.negatives)]
    owners = [place for place, pair in pairs for _ in range(1 + len(pair.negatives))]
    images = F.normalize(examples.pooled, dim=-1)[torch.tensor(owners, device=examples.pooled.device)]
    return {"similarity": _margins((images * model.encode_texts(texts)).sum(-1).tolist(), pairs)}


def _by_likelihood(model: Predictor, examples: EncodedExamples, pairs: Numbered) -> dict[str, list[float]]:
    texts = [
        (place, prompt, model.target_ids(prompt, text))
        for place, pair in pairs
        for prompt in [model.unchecked_caption_prompt(pair.language)]
        for text in (pair.caption, *pair.negatives)
    ]
    ways = {"likelihood": model.score, "blind_likelihood": model.score_blind}
    return {way: _margins(score(examples.features, texts), pairs) for way, score in ways.items()}


def _margins(scores: Sequence[float], pairs: Numbered) -> list[float]:
    """The caption's score less the best of its negatives', from the scores of all texts in a row."""
    margins, at = [], 0
    for _, pair in pairs:
        negatives = scores[at + 1 : at + 1 + len(pair.negatives)]
        margins.append(scores[at] - max(negatives))
        at += 1 + len(pair.negatives)
    return margins
