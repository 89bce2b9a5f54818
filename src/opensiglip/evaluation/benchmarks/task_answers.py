"""How good are a task's answers? A pure function per measure, and the measures of a mixture on held-out examples."""

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from opensiglip.data.example import Box
from opensiglip.data.fields.captions import Ids, Target, part_ids
from opensiglip.data.fields.field import Visit
from opensiglip.data.tasks import TASKS, Asked, Form, Polygon, Task, find_task
from opensiglip.data.tasks.outline import fill
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import Context, Findings, Impossible, Picture
from opensiglip.evaluation.encoded import BATCH, Judged
from opensiglip.evaluation.metrics.scores import measured, overlap
from opensiglip.evaluation.metrics.text import cider_d, words
from opensiglip.inference.generate import greedy
from opensiglip.inference.subject import Subject

LOCCA = ("cap", "aref", "gcap")
SHOWN = 2  # pictures of a task

Detections = Sequence[tuple[str, Box]]


def exact_match(answer: str, truth: str) -> float:
    """1 if the two say the same words, whatever their case and punctuation, else 0."""
    return float(words(answer) == words(truth))


def word_accuracy(answer: str, truth: str) -> float:
    """1 less the word error rate, at least 0: edits that make one of the other, over the words of the truth."""
    said, right = words(answer), words(truth)
    row = list(range(len(right) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return max(0.0, 1 - row[-1] / max(1, len(right)))


def found(answer: Box | None, truth: Box) -> float:
    """1 if the box overlaps the true one by half of their union, else 0."""
    return float(answer is not None and overlap(answer, truth) >= 0.5)


def mask_iou(answer: Polygon | None, truth: Polygon, width: int, height: int) -> float:
    """Intersection over union of two outlines' pixels."""
    if answer is None:
        return 0.0
    a, b = (fill(polygon.points, width, height) for polygon in (answer, truth))
    return float((a & b).sum() / max(1, (a | b).sum()))


def detection_ap(answers: Sequence[Detections], truths: Sequence[Detections]) -> dict[str, float]:
    """COCO's AP over IoU 0.50:0.95, and at 0.50, by pycocotools; a name is a category.

    The texts carry no scores, so all boxes have the same, in the order they were written.
    """
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError('detection is judged by pycocotools: pip install "opensiglip[eval]".') from error
    names = sorted({name for some in truths for name, _ in some})
    place = {name: number for number, name in enumerate(names, 1)}

    def rows(images: Sequence[Detections]) -> list[dict[str, Any]]:
        return [
            {"image_id": image, "category_id": place[name], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for image, some in enumerate(images)
            for name, (x1, y1, x2, y2) in some
            if name in place
        ]

    truth = [
        row | {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(rows(truths), 1)
    ]
    said = [row | {"score": 1.0} for row in rows(answers)]
    if not truth or not said:
        return {"ap": 0.0, "ap50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells how long everything took
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(truths))],
            "categories": [{"id": number, "name": name} for name, number in place.items()],
            "annotations": truth,
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(said), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"ap": float(judge.stats[0]), "ap50": float(judge.stats[1])}


def answers(subject: Subject, judged: Judged, context: Context) -> Findings:
    """Each task of a mixture asked once of every example that has something to ask, and its answers judged.

    Decoded greedily, without a grammar; an answer that means nothing counts as wrong. LocCa's three tasks alone have
    measures of their own (grounding, grounded_captioning, captioning). A user's own tasks are files that the model only
    names, and it may come from anyone: left out unless the context trusts it. Intervals: bootstrap over images.
    """
    if subject.pipeline is None or subject.boxes is None or not (subject.pali or subject.decoder):
        raise Impossible("the model has no decoder")
    if not set(subject.tasks) - set(LOCCA):
        raise Impossible("the decoder was not trained on a mixture of tasks")
    side = judged.examples[0].image.shape[-1]
    form, figures, pictures = Form(subject.boxes, side, side), dict[str, Any](), list[Picture]()
    known = [name for name in subject.tasks if name in TASKS or context.trust]
    if not known:
        raise Impossible("its tasks are files of somebody's code, which are opened with --trust only")
    for task in map(find_task, known):
        asked = [(place, one) for place, one in enumerate(_ask(task, judged)) if one is not None]
        if not asked:
            continue
        questions = [(*one.prefix, *one.target[: one.given]) for _, one in asked]
        prompts = [
            Target(
                part_ids(one.prefix, form, subject.pipeline),
                part_ids(one.target[: one.given], form, subject.pipeline),
            )
            for _, one in asked
        ]
        places = [place for place, _ in asked]
        with subject.autocast():
            texts = [subject.pipeline.text(ids) for ids in write(subject, judged.tokens[places], prompts)]
        said = [task.read(text, form) for text in texts]
        figures[f"{task.name}_asked"] = len(asked)
        figures |= _measure(task, said, [one.truth for _, one in asked], places, side)
        for number, (place, one) in enumerate(asked[:SHOWN]):
            question, truth = (
                " ".join(map(form.write, parts)) for parts in (questions[number], one.target[one.given :])
            )
            right = words(texts[number]) == words(truth)
            pictures.append(Picture(judged.examples[place].image, right, question, (texts[number],), (truth,)))
    if not figures:
        raise Impossible("the examples have nothing that the decoder's tasks ask for")
    if left := len(subject.tasks) - len(known):
        figures["left_out_without_trust"] = left  # tasks
    return Findings(figures, pictures)


def _ask(task: Task, judged: Judged) -> list[Asked | None]:
    visits = []
    for example in judged.examples:
        caption = example.captions[0] if example.captions else None
        width, height = example.extras["size"]  # of the stored image, whose pixels the extra columns speak of
        visits.append(Visit(example, example.image, example.regions, caption, (0, 0, height, width)))
    return [task.ask(visit, np.random.default_rng(place).random) for place, visit in enumerate(visits)]


def _measure(
    task: Task, said: Sequence[Any], truths: Sequence[Any], places: Sequence[int], side: int
) -> dict[str, Any]:
    if task.measure == "boxes":
        return {f"{task.name}_{name}": value for name, value in detection_ap(said, truths).items()}
    if task.measure == "caption":
        scores = cider_d([words(text) for text in said], [[words(text) for text in some] for some in truths])
        return measured(f"{task.name}_cider", scores, places)
    kinds: dict[str, tuple[str, Callable[[Any, Any], float]]] = {
        "exact": ("exact_match", exact_match),
        "words": ("word_accuracy", word_accuracy),
        "box": ("accuracy", found),
        "mask": ("mask_iou", lambda answer, truth: mask_iou(answer, truth, side, side)),
    }
    if task.measure not in kinds:
        raise UserError(f"task {task.name} has measure {task.measure!r}; there are caption, boxes, {', '.join(kinds)}.")
    name, score = kinds[task.measure]
    return measured(
        f"{task.name}_{name}", [score(answer, truth) for answer, truth in zip(said, truths, strict=True)], places
    )


def write(subject: Subject, memory: torch.Tensor, prompts: Sequence[Target]) -> list[Ids]:
    """What the subject writes after each prompt and what is given of its target, having seen image tokens [B, N, M].

    PaLI's encoder reads the prompt, and its decoder writes on from what is given, as it was trained.
    """
    written: list[Ids] = []
    pipeline = subject.pipeline
    assert pipeline is not None
    for at in range(0, len(prompts), 4 * BATCH):
        some, tokens = prompts[at : at + 4 * BATCH], memory[at : at + 4 * BATCH]
        if subject.pali is not None:
            rows = torch.full((len(some), max(len(prompt.prefix) for prompt in some)), pipeline.policy.pad_id)
            for row, prompt in zip(rows, some, strict=True):
                row[: len(prompt.prefix)] = torch.tensor(prompt.prefix)
            given = [prompt.target for prompt in some]
            written += subject.pali.answer(tokens, rows.to(memory.device), pipeline.policy.eos_id, given)
        elif subject.decoder is not None:
            written += greedy(subject.decoder, tokens, [prompt.prefix + prompt.target for prompt in some], pipeline)
    return written
