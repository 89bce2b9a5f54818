"""The decoder probe: what can a fresh decoder learn to read off a frozen encoder?"""

from typing import Any

import numpy as np
import torch

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import Captions, task_words
from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample
from opensiglip.evaluation.benchmarks.captioning import captioning
from opensiglip.evaluation.benchmarks.grounded_captioning import grounded_captioning
from opensiglip.evaluation.benchmarks.grounding import grounding
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.inference.predictor import Predictor
from opensiglip.models.decoder import Decoder, caption_loss
from opensiglip.models.sizes import Shape
from opensiglip.optim import adamw, rate
from opensiglip.types import Features

SHAPE = Shape(width=128, depth=6, mlp=512, heads=4)
BOXES = BoxFormat()
BATCH, LR, DECAY, LENGTH = 64, 1e-3, 0.1, 64


def decoder_probe(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """An encoder's worth as a language model's eye: a new decoder of six layers learns to read its frozen tokens.

    After SigLIP 2 (Sec. 3.4.1, Table 5; LocCa's protocol), which trains on referring expressions alone. Our choices,
    the same for every encoder: width 128, all three tasks, autoregressive, 1500 steps (or as `ProbeConfig` says) of 64
    images of the training split, AdamW at 1e-3 along a cosine, a vocabulary made of the training texts. The tokens,
    un-pooled, are encoded once; then come the metrics of `grounding`, `grounded_captioning` and `captioning`.
    """
    metrics: dict[str, Any] = {"training_images": len(context.training_examples(model).examples)}
    samples: list[Sample] = []
    smaller = context.probe.smaller
    for prefix, shape in (("", SHAPE), *([("smaller_", smaller)] if smaller else [])):
        probe, loss = fit_probe(model, context, shape)
        metrics[f"{prefix}loss"] = loss
        for benchmark in (grounding, grounded_captioning, captioning):
            try:
                result = benchmark(probe, examples, context)
            except NotApplicable:
                continue
            metrics |= {f"{prefix}{benchmark.__name__}_{name}": value for name, value in result.metrics.items()}
            samples += [] if prefix else result.samples
    return BenchmarkResult(metrics, samples)


def fit_probe(model: Predictor, context: Context, shape: Shape | None = None) -> tuple[Predictor, float]:
    """The frozen encoder with the decoder that learned to read it, and the loss of its last 50 steps.

    shape: of the decoder; by default SHAPE.

    Raises NotApplicable where there is nothing to learn from.
    """
    training = context.training_examples(model)
    steps, tasks = context.probe.steps, context.probe.tasks
    field, pipeline = Captions(tasks, boxes=BOXES), _pipeline(context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        decoder = Decoder(shape or SHAPE, len(pipeline), LENGTH, training.tokens.shape[-1]).to(model.device)
    optimizer, losses = adamw(decoder, LR, DECAY), []
    for step in context.progress(range(steps), "decoder probe"):
        rng = np.random.default_rng([context.seed, step])
        places = rng.integers(len(training.examples), size=BATCH).tolist()
        batch = field.collate([field.draw(_visit(training, place, rng), rng, pipeline) for place in places], pipeline)
        here = {name: value.to(model.device) for name, value in batch.items()}
        with model.autocast():
            loss = caption_loss(decoder, Features(None, training.tokens[places], training.valid_at(places)), here)
        loss = loss / here["sequences"].sum().clamp(min=1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * rate(step, steps, max(1, steps // 20))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    if not any(losses):
        raise NotApplicable("no training example has a caption or a region to learn from")
    return model.with_decoder(decoder.eval(), pipeline, BOXES, tasks), float(np.mean(losses[-50:]))


def _pipeline(context: Context) -> TextPipeline:
    if context.training is None:
        raise NotApplicable("no training split for a decoder to learn from")
    return TextPipeline.train(context.training.texts(), length=LENGTH, words=task_words(context.probe.tasks, BOXES))


def _visit(training: EncodedExamples, place: int, rng: np.random.Generator) -> Visit:
    """A training example as a step of training sees it: whole, one caption drawn."""
    example = training.examples[place]
    caption = example.captions[int(rng.integers(len(example.captions)))] if example.captions else None
    return Visit(example, example.image, example.regions, caption)
