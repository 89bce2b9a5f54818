"""Captioning: what the decoder writes of an image, greedily and by beam, against what people write."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample
from opensiglip.evaluation.encode import BATCH, EncodedExamples
from opensiglip.evaluation.metrics.intervals import bootstrap, mean_with_interval
from opensiglip.evaluation.metrics.text import bleu4, bleu_counts, cider_d, words
from opensiglip.inference.generate import GREEDY, Decoding
from opensiglip.inference.predictor import Predictor
from opensiglip.inference.rerank import rerank

DECODINGS = {"greedy": GREEDY, "beam": Decoding(num_beams=4)}
RERANKED = "reranked"
SHOWN = 12


def captioning(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """CIDEr-D and BLEU-4 of the decoder's captions, greedy and by a beam of 4; against its first language's captions.

    With `context.rerank` also of those that this model chooses among the texts of a beam of 8.
    As pycocoevalcap computes them, over our words (metrics/text.py): COCO's own figures are over Penn Treebank tokens.
    Texts and references are compared in the pipeline's canonical form. Beside them CIDEr-D against another image's
    captions, which is what a caption gets that has not looked; and, where there is a text tower, the mean cosine of
    image and caption, which needs no references (after CLIPScore, arXiv:2104.08718, without its factor), for the true
    captions too. Intervals: bootstrap over images.
    """
    pipeline = model.pipeline
    if not model.has_decoder or pipeline is None or not {"cap", "caption"} & set(model.tasks):
        raise NotApplicable("the model has no decoder trained to write captions")
    languages = context.caption_languages(examples)
    captions = {
        place: [caption.text for caption in example.captions if caption.language == languages[0]]
        for place, example in enumerate(examples.examples)
        if languages
    }
    captions = {place: texts for place, texts in captions.items() if texts}
    if not captions:
        raise NotApplicable("the examples have no captions")
    places = list(captions)

    def tokens(text: str) -> list[str]:
        return words(pipeline.canonical(text))

    references = [[tokens(text) for text in texts] for texts in captions.values()]
    prompt = model.unchecked_caption_prompt(languages[0])
    judge = context.rerank
    written: dict[str, list[str]] = {name: [] for name in (*DECODINGS, *([RERANKED] if judge else []))}
    for at in context.progress(range(0, len(places), BATCH), "captions"):
        here = places[at : at + BATCH]
        for name, decoding in DECODINGS.items():
            found = model.generate(examples.features, [prompt] * len(here), decoding, images=here)
            written[name] += [pipeline.text(ids) for ids in found]
        if judge is not None:
            seen = judge.embed_images([examples.examples[place].image for place in here])
            written[RERANKED] += rerank(model, examples.features, [prompt] * len(here), judge, seen, images=here)
    metrics: dict[str, Any] = {"images": len(places), "captions": sum(map(len, references)), "language": languages[0]}
    scores: dict[str, list[float]] = {}
    for name, texts in written.items():
        tokenized = [tokens(text) for text in texts]
        scores[name] = cider_d(tokenized, references)
        metrics |= mean_with_interval(f"cider_{name}", scores[name], places)
        counts = np.array([bleu_counts(*pair) for pair in zip(tokenized, references, strict=True)])
        metrics |= bootstrap(counts, bleu4).as_metrics(f"bleu4_{name}")  # of the corpus: no mean over images
    shift = max(1, len(places) // 2)
    elsewhere = cider_d([tokens(text) for text in written["greedy"]], [*references[shift:], *references[:shift]])
    metrics |= mean_with_interval("cider_shuffled_images", elsewhere, places)
    if model.has_text and examples.pooled is not None:
        images = F.normalize(examples.pooled, dim=-1)[torch.tensor(places, device=model.device)]
        for name, texts in (written | {"references": [texts[0] for texts in captions.values()]}).items():
            cosines = (images * model.encode_texts(texts)).sum(-1).tolist()
            metrics |= mean_with_interval(f"similarity_{name}", cosines, places)
    middle = float(np.median(scores["greedy"]))
    return BenchmarkResult(
        metrics,
        [
            Sample(
                examples.examples[place].image,
                scores["greedy"][number] >= max(middle, 1e-9),
                "Caption?",
                (written["greedy"][number], written["beam"][number]),
                tuple(captions[place]),
            )
            for number, place in enumerate(places[:SHOWN])
        ],
    )
