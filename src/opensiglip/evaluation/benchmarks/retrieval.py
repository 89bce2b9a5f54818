"""Retrieval: does an image find its captions among all, and a caption its image?"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture, some_of_both
from opensiglip.evaluation.encoded import Judged
from opensiglip.evaluation.metrics.scores import measured, ranks
from opensiglip.inference.subject import Subject

DEPTHS = (1, 5, 10)
SHOWN = 3  # captions or images below a picture


def retrieval(subject: Subject, judged: Judged, context: Context) -> Findings:
    """R@1, 5, 10 of both ways between all images and all captions of a language; any of an image's captions counts.

    On whole images squashed to a square, by dot products.    (big_vision evaluators/proj/image_text/
    image_text_retrieval.py:23-85.) In several languages each is judged by itself, and the figures above them are their
    means (as on XM3600). Intervals: bootstrap over images.
    """
    if not subject.has_text or judged.pooled is None:
        raise Impossible("the model has no text tower beside its image tower")
    languages = context.spoken(judged)
    if not languages:
        raise Impossible("the examples have no captions")
    images = F.normalize(judged.pooled, dim=-1)
    rows: dict[str, list[tuple[int, int, str]]] = {"image_to_text": [], "text_to_image": []}  # (rank, image, language)
    pictures: list[Picture] = []
    texts_of: dict[str, int] = {}
    for language in context.bar(languages, "retrieval", len(languages)):
        told = [
            (place, caption.text)
            for place, example in enumerate(judged.examples)
            for caption in example.captions
            if caption.language == language
        ]
        texts_of[language] = len(told)
        owners = torch.tensor([place for place, _ in told], device=images.device)
        texts = subject.read([text for _, text in told])
        with_text = owners.unique()
        to_text = ranks(images[with_text], texts, with_text, owners).tolist()
        to_image = ranks(texts, images, owners, torch.arange(len(images), device=images.device)).tolist()
        rows["image_to_text"] += zip(to_text, with_text.tolist(), [language] * len(to_text), strict=True)
        rows["text_to_image"] += zip(to_image, owners.tolist(), [language] * len(to_image), strict=True)
        if not pictures:
            pictures = _captions_found(judged, images, texts, told, with_text.tolist(), to_text)
            pictures += _images_found(judged, images, texts, told, to_image)
    figures: dict[str, Any] = {
        "images": len({image for _, image, _ in rows["image_to_text"]}),
        "captions": len(rows["text_to_image"]),
        **_recalls(rows),
        "chance_r1": 1 / len(images),
    }
    if len(languages) > 1:
        figures["languages"] = {
            language: {"captions": texts_of[language]}
            | _recalls({way: [row for row in some if row[2] == language] for way, some in rows.items()})
            for language in languages
        }
    return Findings(figures, pictures)


def _recalls(rows: dict[str, list[tuple[int, int, str]]]) -> dict[str, Any]:
    """Recall of both ways at every depth, each language weighing the same."""
    said: dict[str, Any] = {}
    for way, some in rows.items():
        spoken = [language for _, _, language in some]
        share = {language: 1 / spoken.count(language) for language in set(spoken)}
        for depth in DEPTHS:
            hits = [rank < depth for rank, _, _ in some]
            said |= measured(f"{way}_r{depth}", hits, [image for _, image, _ in some], [share[code] for code in spoken])
    return said


def _captions_found(
    judged: Judged,
    images: Tensor,
    texts: Tensor,
    told: list[tuple[int, str]],
    places: list[int],
    found: list[int],
) -> list[Picture]:
    pictures = []
    for one in some_of_both([rank == 0 for rank in found]):
        place = places[one]
        nearest = (texts @ images[place]).topk(min(SHOWN, len(texts)))[1].tolist()
        pictures.append(
            Picture(
                judged.examples[place].image,
                found[one] == 0,
                "Which caption?",
                tuple(told[index][1] for index in nearest),
                tuple(text for owner, text in told if owner == place),
            )
        )
    return pictures


def _images_found(
    judged: Judged, images: Tensor, texts: Tensor, told: list[tuple[int, str]], found: list[int]
) -> list[Picture]:
    pictures = []
    for one in some_of_both([rank == 0 for rank in found]):
        place, text = told[one]
        nearest = (images @ texts[one]).topk(min(SHOWN, len(images)))[1].tolist()
        pictures.append(
            Picture(
                judged.examples[place].image,
                found[one] == 0,
                f"Which image? {text}",
                truths=(f"the large one, found at place {found[one] + 1}; the nearest are below it",),
                beside=tuple(judged.examples[index].image for index in nearest),
            )
        )
    return pictures
