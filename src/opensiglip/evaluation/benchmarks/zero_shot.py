"""Zero-shot classification: which class name fits an image, by similarity and by the decoder's likelihood?"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.example import Example
from opensiglip.data.fields.captions import caption_prefix
from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture, some_of_both
from opensiglip.evaluation.encoded import Judged
from opensiglip.evaluation.labels import class_embeddings, class_name, key, label, templates
from opensiglip.evaluation.metrics.scores import measured
from opensiglip.inference.likelihood import likelihoods, target
from opensiglip.inference.subject import Subject

SHOWN = 5


def zeroshot(subject: Subject, judged: Judged, context: Context) -> Findings:
    """Top-1 and top-5 accuracy among the class names of the judged examples.

    Similarity: CLIP's 80 prompts a class in English, the bare name elsewhere; canonical text; unit embeddings averaged
    and of unit length again; argmax of the dot product.    (big_vision evaluators/proj/image_text/
    discriminative_classifier.py.) The whole image is squashed to the square, as for retrieval; the 12 % that
    big_vision's ImageNet evaluation crops away would take labels with it on images that are not centred: ours.

    Likelihood: argmax of the bare name's summed log-likelihood by the decoder, beside the best that it could say
    without the image: always the name it finds likeliest over all images.    (CapPa, Sec. 4.4; evaluators/proj/
    cappa/scoring_classifier.py.) Beside both the share of the most frequent class.
    """
    labelled = [(place, names) for place, example in enumerate(judged.examples) if (names := label(example))]
    if not labelled:
        raise Impossible("no example has a label (folders: a column `label`; scenes: one drawing)")
    classes = {key(names): names for _, names in labelled}
    order = {name: number for number, name in enumerate(sorted(classes))}
    truths = torch.tensor([order[key(names)] for _, names in labelled])
    places = torch.tensor([place for place, _ in labelled])
    known = [classes[name] for name in order]
    languages = [
        code
        for code in context.languages or judged.languages or known[0]
        if all(class_name(names, code) for names in known)
    ]
    if not languages:
        raise Impossible("no language has a name for every class")
    figures: dict[str, Any] = {
        "images": len(labelled),
        "classes": len(order),
        "chance": 1 / len(order),
        "most_frequent_class": float(truths.bincount().max() / len(truths)),
    }
    pictures: list[Picture] = []
    by_language = {}
    for language in context.bar(languages, "zero-shot", len(languages)):
        said = [str(class_name(one, language)) for one in known]
        by_language[language], shown = _in_language(subject, judged, places, truths, said, language)
        pictures = pictures or shown
    if not any(by_language.values()):
        raise Impossible("the model has neither a text tower beside its image tower nor a decoder that writes captions")
    figures |= by_language[languages[0]]
    if len(languages) > 1:
        figures |= {"language": languages[0], "languages": by_language}
    return Findings(figures, pictures)


def _in_language(
    subject: Subject, judged: Judged, places: Tensor, truths: Tensor, names: Sequence[str], language: str
) -> tuple[dict[str, Any], list[Picture]]:
    said: dict[str, Any] = {}
    shown: Tensor | None = None
    examples = [judged.examples[place] for place in places.tolist()]
    if subject.has_text and judged.pooled is not None:
        images = F.normalize(judged.pooled[places], dim=-1)
        scores = (images @ class_embeddings(subject, names, language).T).cpu()
        said |= {"prompts": len(templates(language)), **accuracies("accuracy", scores, truths)}
        shown = scores
    if subject.has_decoder and "cap" in subject.tasks:
        scores = name_likelihoods(subject, judged, places, names)
        said |= accuracies("accuracy_likelihood", scores, truths)
        unseen = scores.logsumexp(0).expand(len(scores), -1)  # of the mean over images, up to a constant
        said |= accuracies("accuracy_likelihood_blind", unseen, truths)
        shown = scores if shown is None else shown
    return said, [] if shown is None else answers(examples, shown, truths, names)


def name_likelihoods(subject: Subject, judged: Judged, places: Tensor, names: Sequence[str]) -> Tensor:
    """[E, C] float64: log p(name | image) of all pairs of the E examples at these places and C names, as captions."""
    decoder, pipeline = subject.decoder, subject.pipeline
    assert decoder is not None and pipeline is not None
    prefix = caption_prefix(pipeline, subject.tasks)
    texts = [target(pipeline, prefix, name) for name in names]
    asked = [(image, text) for image in places.tolist() for text in texts]
    with subject.autocast():
        found = likelihoods(decoder, judged.tokens, asked, pipeline, judged.valid)
    return torch.tensor(found).unflatten(0, (len(places), len(names)))


def accuracies(name: str, scores: Tensor, truths: Tensor) -> dict[str, Any]:
    """{name: top-1, name_top5: top-5} with intervals; scores [E, C], truths [E]."""
    nearest = scores.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :5]
    hits = nearest == truths[:, None]
    return {
        **measured(name, hits[:, 0].tolist(), range(len(hits))),
        **measured(f"{name}_top5", hits.any(1).tolist(), range(len(hits))),
    }


def answers(examples: Sequence[Example], scores: Tensor, truths: Tensor, names: Sequence[str]) -> list[Picture]:
    """Some hits and some misses with their likeliest classes."""
    nearest = scores.topk(min(SHOWN, len(names)), dim=1)[1].tolist()
    right = [best[0] == truth for best, truth in zip(nearest, truths.tolist(), strict=True)]
    return [
        Picture(
            examples[one].image,
            right[one],
            "Which class?",
            tuple(names[index] for index in nearest[one]),
            (names[int(truths[one])],),
        )
        for one in some_of_both(right)
    ]
