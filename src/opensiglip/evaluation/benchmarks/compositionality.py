"""Compositionality: is the true caption preferred to one that differs from it in one thing?"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from opensiglip.data.fields.captions import caption_prefix
from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture, some_of_both
from opensiglip.evaluation.benchmarks.contrasts import Contrast, contrasts
from opensiglip.evaluation.encoded import Judged
from opensiglip.evaluation.metrics.scores import measured
from opensiglip.inference.likelihood import blind_likelihoods, likelihoods, target
from opensiglip.inference.subject import Subject

ELSEWHERE = 200  # drawings, the first met, of which one takes another's place


def compositionality(subject: Subject, judged: Judged, context: Context) -> Findings:
    """SugarCrepe's question: of a caption and its hard negative, which does the model score higher?

    By image-text similarity (arXiv:2306.14610) and by summed log-likelihood under the decoder (CapPa, Sec. 4; recipes
    2.8: right if score(positive) > score(negative), so a tie is wrong), always beside the same decoder blind: on sets
    like ARO a decoder that sees nothing nearly wins. Scenes give pairs with exact truth (evaluate/contrasts.py); rows
    of a folder name theirs as `negative_caption`. Chance is one half. Intervals: bootstrap over images.
    """
    if not subject.has_text and not subject.has_decoder:
        raise Impossible("the model has neither a text tower nor a decoder")
    languages = context.spoken(judged)
    told = [example.extras["told"][0] for example in judged.examples if "told" in example.extras]
    elsewhere = list({placed.code: placed for scene in told for placed in scene}.values())[:ELSEWHERE]
    pairs = [
        (place, pair)
        for place, example in enumerate(judged.examples)
        for pair in contrasts(example, elsewhere, languages, context.seed + place)
    ]
    if not pairs:
        raise Impossible("no example has a caption with a negative_caption")
    ways = _by_similarity(subject, judged, pairs) | _by_likelihood(subject, judged, pairs)
    owners = [place for place, _ in pairs]
    figures: dict[str, Any] = {"pairs": len(pairs), "images": len(set(owners)), "chance": 0.5}
    for way, margins in ways.items():
        figures |= measured(way, [margin > 0 for margin in margins], owners)
    kinds = {}
    for kind in dict.fromkeys(pair.kind for _, pair in pairs):
        here = [number for number, (_, pair) in enumerate(pairs) if pair.kind == kind]
        kinds[kind] = {"pairs": len(here)}
        for way, margins in ways.items():
            kinds[kind] |= measured(way, [margins[n] > 0 for n in here], [owners[n] for n in here])
    shown = next(iter(ways.values()))
    return Findings(
        figures | {"kinds": kinds},
        [
            Picture(
                judged.examples[pairs[number][0]].image,
                shown[number] > 0,
                f"Which is true ({pairs[number][1].kind})?",
                (pairs[number][1].caption if shown[number] > 0 else pairs[number][1].negative,),
                (pairs[number][1].caption,),
            )
            for number in some_of_both([margin > 0 for margin in shown])
        ],
    )


def _by_similarity(subject: Subject, judged: Judged, pairs: Sequence[tuple[int, Contrast]]) -> dict[str, list[float]]:
    if not subject.has_text or judged.pooled is None:
        return {}
    images = F.normalize(judged.pooled, dim=-1)[
        torch.tensor([place for place, _ in pairs], device=judged.pooled.device)
    ]
    true, false = (subject.read([getattr(p, side) for _, p in pairs]) for side in ("caption", "negative"))
    return {"similarity": (images * (true - false)).sum(-1).tolist()}


def _by_likelihood(subject: Subject, judged: Judged, pairs: Sequence[tuple[int, Contrast]]) -> dict[str, list[float]]:
    decoder, pipeline = subject.decoder, subject.pipeline
    if decoder is None or pipeline is None or "cap" not in subject.tasks:
        return {}
    prefix = caption_prefix(pipeline, subject.tasks)
    texts = [(place, target(pipeline, prefix, text)) for place, pair in pairs for text in (pair.caption, pair.negative)]
    margins = {}
    for way, score in (("likelihood", likelihoods), ("blind_likelihood", blind_likelihoods)):
        with subject.autocast():
            scores = score(decoder, judged.tokens, texts, pipeline, judged.valid)
        margins[way] = [true - false for true, false in zip(scores[::2], scores[1::2], strict=True)]
    return margins
