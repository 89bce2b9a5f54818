"""Grounded captioning: what does the decoder say stands in a box?"""

from collections.abc import Sequence

import numpy as np

from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample, hits_and_misses
from opensiglip.evaluation.encode import BATCH, EncodedExamples
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.text import cider_d, token_f1, words
from opensiglip.inference.predictor import Predictor

DISTRACTORS = 9  # phrases of other boxes beside the true one


def grounded_captioning(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """The phrase after "GCap: box :", decoded greedily: CIDEr-D, token F1; and the true phrase's rank by likelihood.

    The measures are ours (LocCa trains the task but reports none of it). Token F1 is SQuAD's, over our words. The true
    phrase is ranked by its summed log-likelihood among itself and up to 9 phrases of other boxes, those of the same
    image first; one whose words all stand in the true phrase, or the other way round, may be true as well and is left
    out. `first` is how often the true one is the likeliest; `first_shuffled_images` the same given another example's
    image. Single-box regions, first language; intervals: bootstrap over images.
    """
    pipeline = model.pipeline
    if not model.has_decoder or pipeline is None or model.boxes is None or "gcap" not in model.tasks:
        raise NotApplicable("the model has no decoder trained to say what stands in a box")
    asked = examples.referable_regions
    if not asked:
        raise NotApplicable("no example has a region with one box")
    owners = [place for place, _ in asked]
    phrases = [next(iter(region.phrases.values())) for _, region in asked]
    prompts = [model.describe_prompt(region.bbox, *examples.size(place)) for place, region in asked]
    written: list[str] = []
    for at in context.progress(range(0, len(asked), 4 * BATCH), "phrases of boxes"):
        here = slice(at, at + 4 * BATCH)
        answers = model.generate(examples.features, prompts[here], images=owners[here])
        written += [pipeline.text(ids) for ids in answers]
    choices = [distractors(number, owners, phrases, context.seed) for number in range(len(asked))]
    shift = max(1, len(examples.examples) // 2)

    def ranks(move: int) -> list[int]:
        texts = [
            ((place + move) % len(examples.examples), prompt, model.target_ids(prompt, text))
            for place, prompt, phrase, others in zip(owners, prompts, phrases, choices, strict=True)
            for text in (phrase, *others)
        ]
        scores = iter(model.score(examples.features, texts))
        found = []
        for others in choices:
            true = next(scores)
            found.append(1 + sum([next(scores) >= true for _ in others]))
        return found

    ranked, shuffled = ranks(0), ranks(shift)
    predicted, references = ([words(pipeline.canonical(text)) for text in texts] for texts in (written, phrases))
    shared = [token_f1(*pair) for pair in zip(predicted, references, strict=True)]
    return BenchmarkResult(
        {
            "regions": len(asked),
            "images": len(set(owners)),
            **mean_with_interval("cider", cider_d(predicted, [[one] for one in references]), owners),
            **mean_with_interval("token_f1", shared, owners),
            **mean_with_interval("first", [rank == 1 for rank in ranked], owners),
            **mean_with_interval("first_shuffled_images", [rank == 1 for rank in shuffled], owners),
            **mean_with_interval("mean_rank", ranked, owners),
            "chance_first": float(np.mean([1 / (1 + len(others)) for others in choices])),
        },
        [
            Sample(
                examples.examples[owners[one]].image,
                ranked[one] == 1,
                "What stands in the box?",
                (written[one],),
                (phrases[one],),
                target_boxes=(asked[one][1].bbox,),
            )
            for one in hits_and_misses([rank == 1 for rank in ranked])
        ],
    )


def distractors(number: int, owners: Sequence[int], phrases: Sequence[str], seed: int) -> list[str]:
    """Phrases of other boxes that do not fit phrase `number`: of its own image, then of others drawn at random."""
    true = set(words(phrases[number]))
    own = [other for other in range(len(phrases)) if owners[other] == owners[number]]
    drawn = np.random.default_rng([seed, number]).permutation(len(phrases))[: 20 * DISTRACTORS].tolist()
    found: dict[str, None] = {}
    for other in (*own, *drawn):
        some = set(words(phrases[other]))
        if not (some <= true or true <= some):
            found[phrases[other]] = None
    return list(found)[:DISTRACTORS]
