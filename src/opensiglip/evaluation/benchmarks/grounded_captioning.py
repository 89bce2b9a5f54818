"""Grounded captioning: what does the decoder say stands in a box?"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from opensiglip.data.fields.captions import grounded_prefix
from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture, some_of_both
from opensiglip.evaluation.benchmarks.grounding import single_regions
from opensiglip.evaluation.encoded import BATCH, Judged
from opensiglip.evaluation.metrics.scores import measured
from opensiglip.evaluation.metrics.text import cider_d, words
from opensiglip.inference.generate import greedy
from opensiglip.inference.likelihood import likelihoods, target
from opensiglip.inference.subject import Subject

DISTRACTORS = 9  # phrases of other boxes beside the true one


def grounded_captioning(subject: Subject, judged: Judged, context: Context) -> Findings:
    """The phrase after "GCap: box :", decoded greedily: CIDEr-D, token F1; and the true phrase's rank by likelihood.

    The measures are ours (LocCa trains the task but reports none of it). Token F1 is SQuAD's, over our words. The true
    phrase is ranked by its summed log-likelihood among itself and up to 9 phrases of other boxes, those of the same
    image first; one whose words all stand in the true phrase, or the other way round, may be true as well and is left
    out. `first` is how often the true one is the likeliest; `first_shuffled_images` the same given another example's
    image. Single-box regions, first language; intervals: bootstrap over images.
    """
    decoder, pipeline, boxes = subject.decoder, subject.pipeline, subject.boxes
    if decoder is None or pipeline is None or boxes is None or "gcap" not in subject.tasks:
        raise Impossible("the model has no decoder trained to say what stands in a box")
    asked = single_regions(judged)
    if not asked:
        raise Impossible("no example has a region with one box")
    owners = [place for place, _ in asked]
    truths = [next(iter(region.phrases.values())) for _, region in asked]
    prefixes = [grounded_prefix(pipeline, boxes.write(region.bbox, *judged.size(place))) for place, region in asked]
    said: list[str] = []
    for at in context.bar(range(0, len(asked), 4 * BATCH), "names of boxes"):
        here = slice(at, at + 4 * BATCH)
        images, rows = torch.tensor(owners[here], device=subject.device).unique(return_inverse=True)
        with subject.autocast():
            answers = greedy(
                decoder,
                judged.tokens[images],
                prefixes[here],
                pipeline,
                owners=rows.tolist(),
                valid=judged.visible(images),
            )
        said += [pipeline.text(answer) for answer in answers]
    choices = [distractors(number, owners, truths, context.seed) for number in range(len(asked))]
    shift = max(1, len(judged.examples) // 2)

    def ranks(move: int) -> list[int]:
        texts = [
            ((place + move) % len(judged.examples), target(pipeline, prefix, text))
            for place, prefix, truth, others in zip(owners, prefixes, truths, choices, strict=True)
            for text in (truth, *others)
        ]
        with subject.autocast():
            scores = iter(likelihoods(decoder, judged.tokens, texts, pipeline, judged.valid))
        found = []
        for others in choices:
            true = next(scores)
            found.append(1 + sum([next(scores) >= true for _ in others]))
        return found

    ranked, blind = ranks(0), ranks(shift)
    shared = [token_f1(words(answer), words(truth)) for answer, truth in zip(said, truths, strict=True)]
    return Findings(
        {
            "regions": len(asked),
            "images": len(set(owners)),
            **measured("cider", cider_d([words(answer) for answer in said], [[words(t)] for t in truths]), owners),
            **measured("token_f1", shared, owners),
            **measured("first", [rank == 1 for rank in ranked], owners),
            **measured("first_shuffled_images", [rank == 1 for rank in blind], owners),
            **measured("mean_rank", ranked, owners),
            "chance_first": float(np.mean([1 / (1 + len(others)) for others in choices])),
        },
        [
            Picture(
                judged.examples[owners[one]].image,
                ranked[one] == 1,
                "What stands in the box?",
                (said[one],),
                (truths[one],),
                true_boxes=(asked[one][1].bbox,),
            )
            for one in some_of_both([rank == 1 for rank in ranked])
        ],
    )


def distractors(number: int, owners: Sequence[int], phrases: Sequence[str], seed: int) -> list[str]:
    """Phrases of other boxes that do not fit phrase `number`: of its own image, then of others drawn at random."""
    true = set(words(phrases[number]))
    own = [other for other in range(len(phrases)) if owners[other] == owners[number]]
    drawn = np.random.default_rng([seed, number]).permutation(len(phrases))[: 20 * DISTRACTORS].tolist()
    found: dict[str, None] = {}
    for other in (*own, *drawn):
        said = set(words(phrases[other]))
        if not (said <= true or true <= said):
            found[phrases[other]] = None
    return list(found)[:DISTRACTORS]


def token_f1(answer: Sequence[str], truth: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, each as often as it occurs.    (SQuAD, arXiv:1606.05250)"""
    shared = (Counter(answer) & Counter(truth)).total()
    return 2 * shared / (len(answer) + len(truth)) if shared else 0.0
