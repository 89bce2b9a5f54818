"""What a decoder of a mixture of tasks writes, each task by its own measure."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from opensiglip.data.fields.captions import Ids
from opensiglip.data.fields.field import Visit
from opensiglip.data.tasks import TASKS, Form, Task, TaskText, find_task
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable, Sample
from opensiglip.evaluation.encode import BATCH, EncodedExamples
from opensiglip.evaluation.metrics.boxes import box_accuracy, detection_ap, mask_iou
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.evaluation.metrics.text import cider_d, exact_match, word_accuracy, words
from opensiglip.inference.predictor import Predictor
from opensiglip.inference.text_generator import Prompt

OTHERS = ({"cap"}, {"cap", "aref", "gcap"})  # CapPa's and LocCa's tasks
SHOWN = 2  # samples of a task


def text_tasks(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """Each task of a mixture asked once of every example that has something to ask, and what is written judged.

    Decoded greedily, without a grammar; a text that means nothing counts as wrong. Texts are compared in the pipeline's
    canonical form. Models of CapPa and LocCa have benchmarks of their own (grounding, grounded_captioning, captioning).
    A user's own tasks are files that the model only names, and it may come from anyone: left out unless the context
    trusts it. Intervals: bootstrap over images.
    """
    pipeline, boxes = model.pipeline, model.boxes
    if pipeline is None or boxes is None or not model.has_decoder:
        raise NotApplicable("the model has no decoder")
    if set(model.tasks) in OTHERS:
        raise NotApplicable("the decoder was not trained on a mixture of tasks")
    forms = [Form(boxes, *examples.size(place)) for place in range(len(examples.examples))]
    metrics, samples = dict[str, Any](), list[Sample]()
    known = [name for name in model.tasks if name in TASKS or context.trust]
    if not known:
        raise NotApplicable("its tasks are files of somebody's code, which are opened with --trust only")
    for task in map(find_task, known):
        asked = {place: one for place, one in enumerate(_ask(task, examples)) if one is not None}
        if not asked:
            continue
        places = list(asked)
        prompts = [
            model.prompt(one.prefix, one.target[: one.given], *examples.size(place)) for place, one in asked.items()
        ]
        texts = [pipeline.text(ids) for ids in write(model, examples, places, prompts)]
        predictions = [task.read(text, forms[place]) for place, text in zip(places, texts, strict=True)]
        sizes = [examples.size(place) for place in places]
        metrics[f"{task.name}_asked"] = len(asked)
        targets = [one.truth for one in asked.values()]
        metrics |= measure(task, predictions, targets, places, sizes, pipeline.canonical)
        for (place, one), text in list(zip(asked.items(), texts, strict=True))[:SHOWN]:
            question, target = (
                " ".join(map(forms[place].write, parts))
                for parts in ((*one.prefix, *one.target[: one.given]), one.target[one.given :])
            )
            correct = words(pipeline.canonical(text)) == words(pipeline.canonical(target))
            samples.append(Sample(examples.examples[place].image, correct, question, (text,), (target,)))
    if not metrics:
        raise NotApplicable("the examples have nothing that the decoder's tasks ask for")
    if left := len(model.tasks) - len(known):
        metrics["left_out_without_trust"] = left  # tasks
    return BenchmarkResult(metrics, samples)


def _ask(task: Task, examples: EncodedExamples) -> list[TaskText | None]:
    visits = []
    for example in examples.examples:
        caption = example.captions[0] if example.captions else None
        width, height = example.extras["size"]  # of the stored image, whose pixels the extra columns speak of
        visits.append(Visit(example, example.image, example.regions, caption, (0, 0, height, width)))
    return [task.ask(visit, np.random.default_rng(place).random) for place, visit in enumerate(visits)]


def measure(
    task: Task,
    predictions: Sequence[Any],
    targets: Sequence[Any],
    places: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    canonical: Callable[[str], str],
) -> dict[str, Any]:
    """The task's metrics, from what the texts mean and what they should; texts and names compared by `canonical`.

    `places`: the example of each; `sizes`: width and height of its image.
    """
    if task.measure == "boxes":
        named = [
            [[(canonical(name), box) for name, box in some or []] for some in images]
            for images in (predictions, targets)
        ]
        return {f"{task.name}_{name}": value for name, value in detection_ap(*named).items()}
    if task.measure == "caption":
        references = [[words(canonical(text)) for text in some] for some in targets]
        scores = cider_d([words(canonical(text or "")) for text in predictions], references)
        return mean_with_interval(f"{task.name}_cider", scores, places)
    kinds: dict[str, tuple[str, Callable[[Any, Any, tuple[int, int]], float]]] = {
        "exact": ("exact_match", lambda text, target, _: exact_match(canonical(text or ""), canonical(target))),
        "words": ("word_accuracy", lambda text, target, _: word_accuracy(canonical(text or ""), canonical(target))),
        "box": ("accuracy", lambda box, target, _: box_accuracy(box, target)),
        "mask": ("mask_iou", lambda outline, target, size: mask_iou(outline, target, *size)),
    }
    if task.measure not in kinds:
        raise UserError(f"task {task.name} has measure {task.measure!r}; there are caption, boxes, {', '.join(kinds)}.")
    name, score = kinds[task.measure]
    scores = [score(*one) for one in zip(predictions, targets, sizes, strict=True)]
    return mean_with_interval(f"{task.name}_{name}", scores, places)


def write(model: Predictor, examples: EncodedExamples, places: Sequence[int], prompts: Sequence[Prompt]) -> list[Ids]:
    """What the model writes after each prompt, of the examples at these places."""
    written: list[Ids] = []
    for at in range(0, len(prompts), 4 * BATCH):
        here = slice(at, at + 4 * BATCH)
        written += model.generate(examples.features, prompts[here], images=places[here])
    return written
