"""Captions: LocCa's three tasks as packed rows for the decoder. Cap, CapPa and LocCa differ in nothing else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.tasks import TASKS, TaskText, find_task
from opensiglip.data.tasks.task import Form, Part
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

PREFIXES = {task: TASKS[task].words for task in ("cap", "aref", "gcap")}
Ids = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """One text for the decoder: a visible, unweighted prefix; what is to be predicted; and in which mode."""

    prefix: Ids
    target: Ids
    parallel: bool = False


def box_ids(pipeline: TextPipeline, box_text: str) -> Ids:
    """A box's ids, part by part, so that training and constrained decoding agree whatever the tokenizer merges.

    Parts are the numbers and what stands between them; a space is no part of its own, each number brings one. A
    `<loc0000>` is a part, and a token, as it stands.
    """
    parts = re.findall(r"<loc\d{4}>|\d+|[^\d\s]", box_text)
    return tuple(i for part in parts for i in pipeline.ids(part if part.startswith("<loc") else f" {part}"))


def part_ids(parts: Sequence[Part], form: Form, pipeline: TextPipeline) -> Ids:
    """The ids of a text's parts: each is tokenised by itself, places number by number."""
    return tuple(
        i
        for part in parts
        for i in (pipeline.ids(f" {part}") if isinstance(part, str) else box_ids(pipeline, form.write(part)))
    )


def compose(asked: TaskText, visit: Visit, boxes: BoxFormat, pipeline: TextPipeline) -> Target:
    """A task's question and answer as ids."""
    height, width = visit.image.shape[-2:]
    form = Form(boxes, width, height)
    prefix, target = part_ids(asked.prefix, form, pipeline), part_ids(asked.target, form, pipeline)
    return Target(prefix, (*target, pipeline.policy.eos_id))


def task_words(tasks: Sequence[str], boxes: BoxFormat) -> str:
    """What stands in every sequence of the tasks, whatever the data holds: prefixes, and a box's numbers.

    A tokenizer made for the run has each as one token. Measured on the scenes: with a number's digits apart, boxes take
    three times the tokens and are learned later.
    """
    if tuple(tasks) in ((), ("cap",)):
        return ""
    found = [find_task(task) for task in tasks]
    words = [task.words for task in found]
    if any(task.places for task in found) and not boxes.loc:
        words += [boxes.separator, *map(str, range(min(boxes.top, 1000) + 1))]
    return " ".join(words)


def pick(some: Sequence[T], choices: Sequence[float]) -> list[T]:
    """As many different ones as there are choices, numbers in [0, 1), or all; in the order that they are drawn."""
    left = list(some)
    return [left.pop(int(choice * len(left))) for choice in choices[: len(left)]]


class Captions(Field):
    """`captions` and `regions` of each task that places, packed along one row per image.

    tasks: of "cap", "aref", "gcap" (LocCa, Sec. 3: `Cap: caption`, `ARef: phrase : box`, `GCap: box : phrase`, the loss
    on all that follows the prefix). ("cap",) with prefix=False is Cap's and CapPa's plain caption. `parallel` is the
    fraction of *captions* predicted in parallel, drawn per example; ARef and GCap are always autoregressive. Each of
    them gets `regions` regions of the image, none twice; one that does not fit the length gives no sequence.
    `captions`: so many different ones of the visit's language, the visit's first.

    Autoregressive input is shifted right behind pad, the start token. Parallel input is *not* shifted: prefix tokens in
    their places, then [MASK] to the row's full length (its true length would tell the decoder the answer's).
    """

    by_row = False

    def __init__(
        self,
        tasks: tuple[str, ...] = ("cap",),
        *,
        prefix: bool = True,
        parallel: float = 0.0,
        boxes: BoxFormat,
        regions: int = 1,
        captions: int = 1,
    ) -> None:
        self.tasks, self.prefix, self.parallel, self.boxes = tasks, prefix, parallel, boxes
        self.regions, self.captions = regions, captions

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> list[Target]:
        # The same number of draws for every example, so that a visit's choices do not hang on its content.
        mode, refer, describe, *others = rng.random(2 + self.captions).tolist()
        room = pipeline.policy.length
        drawn: list[Target] = []
        if "cap" in self.tasks and visit.caption is not None:
            prefix = pipeline.ids(PREFIXES["cap"]) if self.prefix else ()
            for text in (visit.caption.text, *pick(visit.other_texts, others)):
                target = (*pipeline.ids(f" {text}")[: room - len(prefix) - 1], pipeline.policy.eos_id)
                drawn.append(Target(prefix, target, parallel=mode < self.parallel))
        for task, choice in (("aref", refer), ("gcap", describe)):
            # Evenly spaced choices: no region comes twice before all have come.
            spaced = iter([(choice + k / self.regions) % 1 for k in range(self.regions)])
            asked = [TASKS[task].ask(visit, spaced.__next__) for _ in range(self.regions)] if task in self.tasks else []
            for one in asked:
                sequence = None if one is None else compose(one, visit, self.boxes, pipeline)
                if sequence and sequence not in drawn and len(sequence.prefix) + len(sequence.target) <= room:
                    drawn.append(sequence)
        return drawn

    def collate(self, drawn: Sequence[list[Target]], pipeline: TextPipeline) -> Batch:
        """inputs, targets, positions, segments [B, R] int64; weights [B, R] float32 (1/|y| on targets); full [B, R]
        bool; sequences [B]; of the places in the flattened rows, scored [M] those that carry loss and real [T] all but
        padding.
        """
        return pack(drawn, length=pipeline.policy.length, pad_id=pipeline.policy.pad_id, mask_id=len(pipeline))


def pack(drawn: Sequence[list[Target]], *, length: int, pad_id: int, mask_id: int) -> Batch:
    """Lay each image's sequences end to end; positions restart, segments tell them apart (-1: padding)."""
    sizes = [[length if s.parallel else len(s.prefix) + len(s.target) for s in row] for row in drawn]
    longest = max((sum(row) for row in sizes), default=0)
    shape = (len(drawn), max(8, -(-longest // 8) * 8))  # few widths, and never none
    inputs, targets = np.full(shape, pad_id), np.full(shape, pad_id)
    positions, segments = np.zeros(shape, np.int64), np.full(shape, -1)
    weights, full = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for b, row in enumerate(drawn):
        at = 0
        for number, sequence in enumerate(row):
            ids = sequence.prefix + sequence.target
            start, end = at + len(sequence.prefix), at + len(ids)
            stop = at + sizes[b][number]
            if sequence.parallel:
                inputs[b, at:start] = sequence.prefix
                inputs[b, start:stop] = mask_id
            else:
                inputs[b, at] = pad_id
                inputs[b, at + 1 : end] = ids[:-1]
            targets[b, at:end] = ids
            weights[b, start:end] = 1 / len(sequence.target)
            positions[b, at:stop] = np.arange(stop - at)
            segments[b, at:stop] = number
            full[b, at:stop] = sequence.parallel
            at = stop
    return {
        "inputs": torch.from_numpy(inputs),
        "targets": torch.from_numpy(targets),
        "positions": torch.from_numpy(positions),
        "segments": torch.from_numpy(segments),
        "weights": torch.from_numpy(weights),
        "full": torch.from_numpy(full),
        "sequences": torch.tensor([len(row) for row in drawn]),
        "scored": torch.from_numpy(weights.ravel().nonzero()[0]),
        "real": torch.from_numpy((segments.ravel() >= 0).nonzero()[0]),
    }
