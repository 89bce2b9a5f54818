"""Frozen features of whole images: what nearest neighbours, least squares and a linear layer read off them."""

from typing import Any

import torch

from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable
from opensiglip.evaluation.class_names import key
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.labels import label
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.linear import draw_shots, few_shot, fit_classifier, knn
from opensiglip.evaluation.metrics.ranking import accuracies
from opensiglip.float64 import widen
from opensiglip.inference.encoder import pooled_features
from opensiglip.inference.predictor import Predictor

SHOTS, SEEDS = (1, 5, 10, 25), 3


def image_probes(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """Accuracy of three readings of the image's pooled feature (the mean of its tokens where it has no pooling).

    k-NN: 20 neighbours by cosine, weighted by exp(cosine / 0.07).    (DINO eval_knn.py)
    Few-shot: least squares in closed form, 3 seeds.    (big_vision evaluators/fewshot_lsr.py:38-111)
    Linear: logistic regression, its L2 chosen on a fifth of the training examples (ours).
    All are fitted to the split train alone.
    """
    training = context.training_examples(model)
    known, asked = _classes(training), _classes(examples)
    order = {name: number for number, name in enumerate(sorted(set(known.values())))}
    asked = {place: name for place, name in asked.items() if name in order}
    if not known or not asked:
        raise NotApplicable("no class with labelled examples both in training and held out")
    x, y = pooled_features(training.features)[list(known)].cpu(), torch.tensor([order[name] for name in known.values()])
    test = pooled_features(examples.features)[list(asked)].cpu()
    targets = torch.tensor([order[name] for name in asked.values()])
    metrics: dict[str, Any] = {
        "images": len(test),
        "training_images": len(x),
        "classes": len(order),
        "chance": 1 / len(order),
        "most_frequent_class": float(widen(targets == y.bincount(minlength=len(order)).argmax()).mean()),
        **accuracies("knn", knn(x, y, test, len(order)), targets),
    }
    largest = int(y.bincount().max())
    for shots in context.progress([n for n in SHOTS if n <= largest], "few-shot"):
        hits = torch.stack(
            [
                few_shot(*draw_shots(x, y, shots, context.seed + seed), test, len(order)).argmax(1) == targets
                for seed in range(SEEDS)
            ]
        )
        metrics |= mean_with_interval(f"shots_{shots}", widen(hits).mean(0).tolist(), range(len(test)))
    scores = fit_classifier(x, y, len(order), context.seed)(test)
    return BenchmarkResult(metrics | accuracies("linear", scores, targets))


def _classes(examples: EncodedExamples) -> dict[int, str]:
    """By place, the class of each labelled example."""
    return {place: key(names) for place, example in enumerate(examples.examples) if (names := label(example))}
