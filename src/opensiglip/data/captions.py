"""Captions: LocCa's three tasks as packed rows for the decoder. Cap, CapPa and LocCa differ in nothing else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Region
from opensiglip.data.fields import Field, Visit
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

PREFIXES = {"cap": " Cap:", "aref": " ARef:", "gcap": " GCap:"}
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """One text for the decoder: a visible, unweighted prefix; what is to be predicted; and in which mode."""

    prefix: Ids
    target: Ids
    parallel: bool = False


def caption_prefix(pipeline: TextPipeline, tasks: tuple[str, ...]) -> Ids:
    """What stands before a caption: nothing where captions are the only task (Cap, CapPa), else "Cap:" (LocCa)."""
    return () if tasks == ("cap",) else pipeline.ids(PREFIXES["cap"])


def referring_prefix(pipeline: TextPipeline, phrase: str) -> Ids:
    """What stands before the box in "ARef: phrase : box"; decoding goes on from it."""
    return pipeline.ids(PREFIXES["aref"]) + pipeline.ids(f" {phrase}") + pipeline.ids(" :")


def grounded_prefix(pipeline: TextPipeline, box_text: str) -> Ids:
    """What stands before the phrase in "GCap: box : phrase"."""
    return pipeline.ids(PREFIXES["gcap"]) + box_ids(pipeline, box_text) + pipeline.ids(" :")


def box_ids(pipeline: TextPipeline, box_text: str) -> Ids:
    """A box's ids, part by part, so that training and constrained decoding agree whatever the tokenizer merges.

    Parts are the numbers and what stands between them; a space is no part of its own, each number brings one.
    """
    return tuple(i for part in re.findall(r"\d+|[^\d\s]", box_text) for i in pipeline.ids(f" {part}"))


def task_words(tasks: Sequence[str], boxes: BoxFormat) -> str:
    """What stands in every sequence of the tasks, whatever the data holds: prefixes, and a box's numbers.

    A tokenizer made for the run has each as one token. Measured on the scenes: with a number's digits apart, boxes take
    three times the tokens and are learned later.
    """
    if tuple(tasks) in ((), ("cap",)):
        return ""
    words = [*(PREFIXES[task] for task in tasks), boxes.separator, *map(str, range(min(boxes.top, 1000) + 1))]
    return " ".join(words)


class Captions(Field):
    """Up to one sequence per task and visit, packed along one row per image.

    tasks: of "cap", "aref", "gcap" (LocCa, Sec. 3: `Cap: caption`, `ARef: phrase : box`, `GCap: box : phrase`, the loss
    on all that follows the prefix). ("cap",) with prefix=False is Cap's and CapPa's plain caption. `parallel` is the
    fraction of *captions* predicted in parallel, drawn per example; ARef and GCap are always autoregressive. One region
    is drawn for each of them; one that names several boxes, or does not fit the length, gives no sequence.

    Autoregressive input is shifted right behind pad, the start token. Parallel input is *not* shifted: prefix tokens in
    their places, then [MASK] to the row's full length (its true length would tell the decoder the answer's).
    """

    def __init__(
        self, tasks: tuple[str, ...] = ("cap",), *, prefix: bool = True, parallel: float = 0.0, boxes: BoxFormat
    ) -> None:
        self.tasks, self.prefix, self.parallel, self.boxes = tasks, prefix, parallel, boxes

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> list[Target]:
        # The same number of draws for every example, so that a visit's choices do not hang on its content.
        mode, *choices = rng.random(3)
        regions = [region for region in visit.regions if region.n_boxes == 1 and region.phrases]
        language = visit.caption.language if visit.caption else None
        room = pipeline.policy.length
        drawn = []
        if "cap" in self.tasks and visit.caption is not None:
            prefix = pipeline.ids(PREFIXES["cap"]) if self.prefix else ()
            target = (*pipeline.ids(f" {visit.caption.text}")[: room - len(prefix) - 1], pipeline.policy.eos_id)
            drawn.append(Target(prefix, target, parallel=bool(mode < self.parallel)))
        for task, choice in zip(("aref", "gcap"), choices, strict=True):
            if task not in self.tasks or not regions:
                continue
            region = regions[int(choice * len(regions))]
            sequence = self._located(task, region, language, visit, pipeline)
            if len(sequence.prefix) + len(sequence.target) <= room:
                drawn.append(sequence)
        return drawn

    def _located(self, task: str, region: Region, language: str | None, visit: Visit, pipeline: TextPipeline) -> Target:
        text = region.phrases.get(language or "") or next(iter(region.phrases.values()))
        height, width = visit.image.shape[-2:]
        phrase = pipeline.ids(f" {text}")
        box = box_ids(pipeline, self.boxes.write(region.bbox, width, height))
        parts = (phrase, box) if task == "aref" else (box, phrase)
        target = (*parts[0], *pipeline.ids(" :"), *parts[1], pipeline.policy.eos_id)
        return Target(pipeline.ids(PREFIXES[task]), target)

    def collate(self, drawn: Sequence[list[Target]], pipeline: TextPipeline) -> Batch:
        """inputs, targets, positions, segments [B, R] int64; weights [B, R] float32 (1/|y| on targets); full [B, R]
        bool; sequences [B]; scored [M], the places in the flattened rows that carry loss.
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
    }
