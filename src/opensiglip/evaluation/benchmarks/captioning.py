"""Captioning: what the decoder says of an image, greedily and by beam, against what people say."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from opensiglip.data.fields.captions import Ids, caption_prefix
from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture
from opensiglip.evaluation.encoded import BATCH, Judged
from opensiglip.evaluation.metrics.scores import measured
from opensiglip.evaluation.metrics.text import bleu4, bleu_counts, cider_d, words
from opensiglip.inference.generate import beam, greedy
from opensiglip.inference.subject import Subject

Search = Callable[..., list[Ids]]
SEARCHES: dict[str, Search] = {"greedy": greedy, "beam": beam}
SHOWN = 12


def captioning(subject: Subject, judged: Judged, context: Context) -> Findings:
    """CIDEr-D and BLEU-4 of the decoder's captions, greedy and by a beam of 4; against its first language's captions.

    As pycocoevalcap computes them, over our words (evaluate/captions.py): COCO's own figures are over Penn Treebank
    tokens. Beside them CIDEr-D against another image's captions, which is what a caption gets that has not looked; and,
    where there is a text tower, the mean cosine of image and caption, which needs no references (after CLIPScore,
    arXiv:2104.08718, without its factor), for the true captions too. Intervals: bootstrap over images.
    """
    decoder, pipeline = subject.decoder, subject.pipeline
    if decoder is None or pipeline is None or not {"cap", "caption"} & set(subject.tasks):
        raise Impossible("the model has no decoder trained to write captions")
    languages = context.spoken(judged)
    told = {
        place: [caption.text for caption in example.captions if caption.language == languages[0]]
        for place, example in enumerate(judged.examples)
        if languages
    }
    told = {place: texts for place, texts in told.items() if texts}
    if not told:
        raise Impossible("the examples have no captions")
    places = list(told)
    references = [[words(text) for text in texts] for texts in told.values()]
    prefix = caption_prefix(pipeline, subject.tasks, languages[0])
    said: dict[str, list[str]] = {name: [] for name in SEARCHES}
    for at in context.bar(range(0, len(places), BATCH), "captions"):
        here = torch.tensor(places[at : at + BATCH], device=subject.device)
        memory, valid = judged.tokens[here], judged.visible(here)
        for name, search in SEARCHES.items():
            with subject.autocast():
                answers = search(decoder, memory, [prefix] * len(memory), pipeline, valid=valid)
            said[name] += [pipeline.text(answer) for answer in answers]
    figures: dict[str, Any] = {"images": len(places), "captions": sum(map(len, references)), "language": languages[0]}
    scores: dict[str, list[float]] = {}
    for name, texts in said.items():
        written = [words(text) for text in texts]
        scores[name] = cider_d(written, references)
        figures |= measured(f"cider_{name}", scores[name], places)
        figures |= _bleu(f"bleu4_{name}", [bleu_counts(*pair) for pair in zip(written, references, strict=True)])
    shift = max(1, len(places) // 2)
    elsewhere = [*references[shift:], *references[:shift]]
    figures |= measured("cider_shuffled_images", cider_d([words(text) for text in said["greedy"]], elsewhere), places)
    if subject.has_text and judged.pooled is not None:
        images = F.normalize(judged.pooled, dim=-1)[torch.tensor(places, device=subject.device)]
        for name, texts in (said | {"references": [texts[0] for texts in told.values()]}).items():
            figures |= measured(f"similarity_{name}", (images * subject.read(texts)).sum(-1).tolist(), places)
    middle = float(np.median(scores["greedy"]))
    return Findings(
        figures,
        [
            Picture(
                judged.examples[place].image,
                scores["greedy"][number] >= max(middle, 1e-9),
                "Caption?",
                (said["greedy"][number], said["beam"][number]),
                tuple(told[place]),
            )
            for number, place in enumerate(places[:SHOWN])
        ],
    )


def _bleu(name: str, counts: Sequence[list[int]], draws: int = 1000) -> dict[str, Any]:
    """BLEU-4 is no mean over images, so what it sums up is drawn again: percentile bootstrap over images, seed 0."""
    table = np.array(counts, float)
    drawn = np.random.default_rng(0).integers(len(table), size=(draws, len(table)))
    low, high = np.percentile([bleu4(table[some].sum(0)) for some in drawn], [2.5, 97.5])
    return {name: bleu4(table.sum(0)), f"{name}_ci95": [float(low), float(high)]}
