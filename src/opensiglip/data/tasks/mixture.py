"""Mixture: tasks drawn by their weights, as packed rows for a decoder or as pairs for an encoder-decoder."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import Target, compose, pack
from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.tasks import Task, TaskText, find_task
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

TRIES = 6  # of a task, for something that was not said yet and fits


class Mixture(Field):
    """`texts` sequences an image and visit, each of a task drawn by weight among those with something to say.

    A task's share of the sequences is its weight's, among the tasks that can serve the image. One that has nothing to
    say of it, or too much for the length, leaves its place to the others; one that has only one thing to say repeats
    it, since else its share would fall with `texts`. `paired`: prefix and target are fields of their own (PaLI); else
    they are packed along one row per image (as LocCa's).
    """

    by_row = False

    def __init__(self, weights: Mapping[str, float], *, texts: int, boxes: BoxFormat, paired: bool = False) -> None:
        self.names = list(weights)  # not the tasks: each process finds a user's own anew
        self.weights = np.array(list(weights.values()))
        self.texts, self.boxes, self.paired = texts, boxes, paired

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> list[Target]:
        # The same number of draws for every example, so that a visit's choices do not hang on its content.
        numbers = rng.random((self.texts, len(self.names), 2))
        drawn: list[Target] = []
        for slot in numbers:
            # The largest u^(1/w) first: a weighted order without replacement (Efraimidis and Spirakis, 2006).
            for place in np.argsort(-np.log(slot[:, 0]) / self.weights):
                sequence = self._sequence(int(place), float(slot[place, 1]), visit, pipeline, drawn)
                if sequence is not None:
                    drawn.append(sequence)
                    break
        return drawn

    def _sequence(
        self, place: int, seed: float, visit: Visit, pipeline: TextPipeline, drawn: Sequence[Target]
    ) -> Target | None:
        """One of the task that fits, if there is any, and is not yet drawn, if there is any."""
        task, draw = find_task(self.names[place]), np.random.default_rng(int(seed * 2**53)).random
        again: Target | None = None
        for _ in range(TRIES):
            asked = task.ask(visit, draw)
            if asked is None:
                return None
            sequence = self._fitted(task, asked, visit, pipeline)
            if sequence is not None and sequence not in drawn:
                return sequence
            again = again or sequence
        return again

    def _fitted(self, task: Task, asked: TaskText, visit: Visit, pipeline: TextPipeline) -> Target | None:
        sequence = compose(asked, visit, self.boxes, pipeline)
        room = pipeline.policy.length - (0 if self.paired else len(sequence.prefix))
        if task.cut and room > 1 and len(sequence.target) > room:
            sequence = Target(sequence.prefix, (*sequence.target[: room - 1], pipeline.policy.eos_id))
        return sequence if len(sequence.prefix) < pipeline.policy.length and len(sequence.target) <= room else None

    def collate(self, drawn: Sequence[list[Target]], pipeline: TextPipeline) -> Batch:
        """What `pack` gives, or with `paired` what `pair` gives."""
        if self.paired:
            return pair(drawn, pad_id=pipeline.policy.pad_id)
        return pack(drawn, length=pipeline.policy.length, pad_id=pipeline.policy.pad_id, mask_id=len(pipeline))


def pair(drawn: Sequence[list[Target]], *, pad_id: int) -> Batch:
    """One row a sequence, S in all (at least one, of nothing): prompts [S, P], answers [S, L] and, shifted right behind
    pad, answers_in [S, L], int64; answers_weights [S, L] float32, 1/|y|; answers_scored [M], places in the flattened
    answers; owner [S], each row's image; sequences [B].
    """
    rows = [(owner, sequence) for owner, row in enumerate(drawn) for sequence in row]
    count = max(1, len(rows))

    def width(sizes: list[int]) -> int:
        return max(8, -(-max(sizes, default=0) // 8) * 8)  # few widths, and never none

    prompts = np.full((count, width([len(sequence.prefix) for _, sequence in rows])), pad_id)
    answers = np.full((count, width([len(sequence.target) for _, sequence in rows])), pad_id)
    weights, owners = np.zeros(answers.shape, np.float32), np.zeros(count, np.int64)
    for number, (owner, sequence) in enumerate(rows):
        prompts[number, : len(sequence.prefix)] = sequence.prefix
        answers[number, : len(sequence.target)] = sequence.target
        weights[number, : len(sequence.target)] = 1 / len(sequence.target)
        owners[number] = owner
    shifted = np.full_like(answers, pad_id)
    shifted[:, 1:] = answers[:, :-1]
    return {
        "prompts": torch.from_numpy(prompts),
        "answers": torch.from_numpy(answers),
        "answers_in": torch.from_numpy(shifted),
        "answers_weights": torch.from_numpy(weights),
        "answers_scored": torch.from_numpy(weights.ravel().nonzero()[0]),
        "owner": torch.from_numpy(owners),
        "sequences": torch.tensor([len(row) for row in drawn]),
    }
