"""Zero-shot classification: which class name fits an image, by similarity and by the decoder's likelihood?"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.example import Example
from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample, hits_and_misses
from opensiglip.evaluation.class_names import class_embeddings, class_name, key, templates, unusable_names
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.labels import label
from opensiglip.evaluation.metrics.ranking import accuracies
from opensiglip.inference.predictor import Predictor

SHOWN = 5


def zero_shot(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """Top-1 and top-5 accuracy among the class names of the judged examples.

    Similarity: big_vision's 81 prompts a class in English, the bare name elsewhere; canonical text; unit embeddings
    averaged and of unit length again; argmax of the dot product.    (big_vision evaluators/proj/image_text/
    discriminative_classifier.py.) The whole image is squashed to the square, as for retrieval; the 12 % that
    big_vision's ImageNet evaluation crops away would take labels with it on images that are not centred: ours.

    Likelihood: argmax of the bare name's summed log-likelihood by the decoder, beside the best that it could say
    without the image: always the name it finds likeliest over all images.    (CapPa, Sec. 4.4; evaluators/proj/
    cappa/scoring_classifier.py.) Beside both the share of the most frequent class.
    """
    labelled = [(place, names) for place, example in enumerate(examples.examples) if (names := label(example))]
    if not labelled:
        raise NotApplicable("no example has a label (folders: a column `label`; scenes: one drawing)")
    by_key = {key(names): names for _, names in labelled}
    order = {name: number for number, name in enumerate(sorted(by_key))}
    classes = [by_key[name] for name in order]
    targets = torch.tensor([order[key(names)] for _, names in labelled])
    places = torch.tensor([place for place, _ in labelled])
    languages = [
        code
        for code in context.languages or examples.languages or classes[0]
        if all(names.get(code) for names in classes)
    ]
    if not languages:
        raise NotApplicable("no language has a name for every class")
    metrics: dict[str, Any] = {
        "images": len(labelled),
        "classes": len(order),
        "chance": 1 / len(order),
        "most_frequent_class": float(targets.bincount().max() / len(targets)),
    }
    samples: list[Sample] = []
    by_language = {}
    for language in context.progress(languages, "zero-shot", len(languages)):
        if not context.raw_class_names and (clash := unusable_names(classes, language)):
            raise NotApplicable(f"{clash}; rename them, or give --raw-class-names to use the names as they stand")
        texts = [class_name(one, language, raw=context.raw_class_names) for one in classes]
        by_language[language], shown = _in_language(model, examples, places, targets, texts, language)
        samples = samples or shown
    if not any(by_language.values()):
        raise NotApplicable(
            "the model has neither a text tower beside its image tower nor a decoder that writes captions"
        )
    metrics |= by_language[languages[0]]
    if len(languages) > 1:
        metrics |= {"language": languages[0], "languages": by_language}
    return BenchmarkResult(metrics, samples)


def _in_language(
    model: Predictor, examples: EncodedExamples, places: Tensor, targets: Tensor, names: Sequence[str], language: str
) -> tuple[dict[str, Any], list[Sample]]:
    """Metrics by similarity and by likelihood, as the model allows, and samples by the first of them."""
    metrics: dict[str, Any] = {}
    shown: Tensor | None = None
    labelled = [examples.examples[place] for place in places.tolist()]
    if model.has_text and examples.pooled is not None:
        images = F.normalize(examples.pooled[places], dim=-1)
        scores = (images @ class_embeddings(model, names, language).T).cpu()
        metrics |= {"prompts": len(templates(language)), **accuracies("accuracy", scores, targets)}
        shown = scores
    if model.has_decoder and {"cap", "caption"} & set(model.tasks):
        scores = name_likelihoods(model, examples, places, names, language)
        metrics |= accuracies("accuracy_likelihood", scores, targets)
        blind = scores.logsumexp(0).expand(len(scores), -1)  # of the mean over images, up to a constant
        metrics |= accuracies("accuracy_likelihood_blind", blind, targets)
        shown = scores if shown is None else shown
    return metrics, [] if shown is None else _samples(labelled, shown, targets, names)


def name_likelihoods(
    model: Predictor, examples: EncodedExamples, places: Tensor, names: Sequence[str], language: str
) -> Tensor:
    """[E, C] float64: log p(name | image) of all pairs of the E examples at these places and C names, as captions."""
    prompt = model.unchecked_caption_prompt(language)
    texts = [model.target_ids(prompt, name) for name in names]
    asked = [(image, prompt, text) for image in places.tolist() for text in texts]
    return torch.tensor(model.score(examples.features, asked)).unflatten(0, (len(places), len(names)))


def _samples(examples: Sequence[Example], scores: Tensor, targets: Tensor, names: Sequence[str]) -> list[Sample]:
    """Some hits and some misses with their likeliest classes."""
    nearest = scores.topk(min(SHOWN, len(names)), dim=1)[1].tolist()
    correct = [best[0] == truth for best, truth in zip(nearest, targets.tolist(), strict=True)]
    return [
        Sample(
            examples[one].image,
            correct[one],
            "Which class?",
            tuple(names[index] for index in nearest[one]),
            (names[int(targets[one])],),
        )
        for one in hits_and_misses(correct)
    ]
