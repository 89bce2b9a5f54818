"""Retrieval: does an image find its captions among all, and a caption its image?"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample, hits_and_misses
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.ranking import ranks
from opensiglip.inference.predictor import Predictor

DEPTHS = (1, 5, 10)
SHOWN = 3  # captions or images below a sample


def retrieval(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """R@1, 5, 10 of both ways between all images and all captions of a language; any of an image's captions counts.

    In several languages also `cross_lingual_r1`: a caption of another language finds one of its image among all
    captions in English or, where there are none, in the first of the languages. Of a model with nested widths also with
    its embeddings cut to each, as `image_to_text_at_64_r1`. On whole images squashed to a square, by dot products.
    (big_vision evaluators/proj/image_text/
    image_text_retrieval.py:23-85.) In several languages each is judged by itself, and the figures above them are their
    means (as on XM3600). Intervals: bootstrap over images.
    """
    if not model.has_text or examples.pooled is None:
        raise NotApplicable("the model has no text tower beside its image tower")
    languages = context.caption_languages(examples)
    if not languages:
        raise NotApplicable("the examples have no captions")
    images = F.normalize(examples.pooled, dim=-1)
    widths = {f"_at_{width}": width for width in model.nested} | {"": None}  # that embeddings are cut to; all come last
    rows: dict[str, list[tuple[int, int, str]]] = {}  # (rank, image, language)
    pivot = "en" if "en" in languages else languages[0]
    ordered = sorted(languages, key=lambda code: code != pivot)
    pivot_texts, pivot_owners = torch.empty(0), torch.empty(0)  # of the first turn of the loop
    samples: list[Sample] = []
    count: dict[str, int] = {}  # captions by language
    for language in context.progress(ordered, "retrieval", len(languages)):
        captions = [
            (place, caption.text)
            for place, example in enumerate(examples.examples)
            for caption in example.captions
            if caption.language == language
        ]
        count[language] = len(captions)
        owners = torch.tensor([place for place, _ in captions], device=images.device)
        texts = model.encode_texts([text for _, text in captions])
        with_text = owners.unique()
        if language == pivot:
            pivot_texts, pivot_owners = texts, owners
        known = torch.isin(owners, pivot_owners)  # captions whose image has one of the pivot
        for at, width in widths.items():
            shown, written = model.cut(images, width), model.cut(texts, width)
            to_text = ranks(shown[with_text], written, with_text, owners).tolist()
            to_image = ranks(written, shown, owners, torch.arange(len(images), device=images.device)).tolist()
            of_images = zip(to_text, with_text.tolist(), [language] * len(to_text), strict=True)
            of_texts = zip(to_image, owners.tolist(), [language] * len(to_image), strict=True)
            rows.setdefault(f"image_to_text{at}", []).extend(of_images)
            rows.setdefault(f"text_to_image{at}", []).extend(of_texts)
            if language != pivot and known.any():
                across = ranks(written[known], model.cut(pivot_texts, width), owners[known], pivot_owners).tolist()
                of_pairs = zip(across, owners[known].tolist(), [language] * len(across), strict=True)
                rows.setdefault(f"cross_lingual{at}", []).extend(of_pairs)
        if not samples:
            samples = _caption_samples(examples, images, texts, captions, with_text.tolist(), to_text)
            samples += _image_samples(examples, images, texts, captions, to_image)
    metrics: dict[str, Any] = {
        "images": len({image for _, image, _ in rows["image_to_text"]}),
        "captions": len(rows["text_to_image"]),
        **_recalls(rows),
        "chance_r1": 1 / len(images),
    }
    if len(languages) > 1:
        metrics["languages"] = {
            language: {"captions": count[language]}
            | _recalls({way: own for way, some in rows.items() if (own := [row for row in some if row[2] == language])})
            for language in languages
        }
    return BenchmarkResult(metrics, samples)


def _recalls(rows: dict[str, list[tuple[int, int, str]]]) -> dict[str, Any]:
    """Recall of both ways at every depth, each language weighing the same."""
    recalls: dict[str, Any] = {}
    for way, some in rows.items():
        languages = [language for _, _, language in some]
        share = {language: 1 / languages.count(language) for language in set(languages)}
        images, weights = [image for _, image, _ in some], [share[code] for code in languages]
        for depth in DEPTHS:
            recalls |= mean_with_interval(f"{way}_r{depth}", [rank < depth for rank, _, _ in some], images, weights)
    return recalls


def _caption_samples(
    examples: EncodedExamples,
    images: Tensor,
    texts: Tensor,
    captions: list[tuple[int, str]],
    places: list[int],
    found: list[int],
) -> list[Sample]:
    """Images with the captions nearest to them."""
    samples = []
    for one in hits_and_misses([rank == 0 for rank in found]):
        place = places[one]
        nearest = (texts @ images[place]).topk(min(SHOWN, len(texts)))[1].tolist()
        samples.append(
            Sample(
                examples.examples[place].image,
                found[one] == 0,
                "Which caption?",
                tuple(captions[index][1] for index in nearest),
                tuple(text for owner, text in captions if owner == place),
            )
        )
    return samples


def _image_samples(
    examples: EncodedExamples, images: Tensor, texts: Tensor, captions: list[tuple[int, str]], found: list[int]
) -> list[Sample]:
    """Captions with the images nearest to them."""
    samples = []
    for one in hits_and_misses([rank == 0 for rank in found]):
        place, text = captions[one]
        nearest = (images @ texts[one]).topk(min(SHOWN, len(images)))[1].tolist()
        samples.append(
            Sample(
                examples.examples[place].image,
                found[one] == 0,
                f"Which image? {text}",
                targets=(f"the large one, found at place {found[one] + 1}; the nearest are below it",),
                images=tuple(examples.examples[index].image for index in nearest),
            )
        )
    return samples
