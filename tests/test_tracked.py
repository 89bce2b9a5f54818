"""What trackers get at an evaluation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opensiglip.evaluation.benchmark import Sample
from opensiglip.training.tracked import EACH, picture, show

BOX = (8.0, 8.0, 24.0, 24.0)
SAMPLE = Sample(
    torch.zeros(3, 32, 32, dtype=torch.uint8), True, target_boxes=(BOX,), predicted_boxes=((0.0, 0.0, 16.0, 16.0),)
)


def test_tensorboard_has_pictures_and_a_table(tmp_path: Path) -> None:
    tracker = TensorBoardTracker("run", tmp_path)
    tracker.start()
    some = [SAMPLE, replace(SAMPLE, correct=False), *[SAMPLE] * (EACH + 1)]
    show([tracker], {"grounding": some}, {"eval/grounding/accuracy": 0.25}, 7)
    tracker.finish()
    stored = EventAccumulator(str(tmp_path / "run"))
    stored.Reload()
    names = stored.Tags()["images"]
    assert len(names) == EACH and names[:2] == ["eval/grounding/0 hit", "eval/grounding/1 miss"]
    (event,) = stored.Images(names[0])
    assert event.step == 7 and (event.width, event.height) == (256, 256)
    (text,) = stored.Tensors("eval/figures/text_summary")
    assert b"grounding/accuracy | 0.2500" in text.tensor_proto.string_val[0]


def test_wandb_gets_both_and_other_trackers_neither() -> None:
    said: list[Any] = []

    class Tracker:
        def __init__(self, name: str) -> None:
            self.name = name

        def log_images(self, values: dict[str, np.ndarray], step: int) -> None:
            said.append((self.name, [value.shape for value in values.values()], step))

        def log_table(self, name: str, columns: list[str], data: list[Any], step: int) -> None:
            said.append((self.name, columns, data, step))

    show([Tracker("wandb"), Tracker("mlflow")], {"retrieval": [SAMPLE]}, {"eval/retrieval/r1": 0.5}, 3)
    assert said == [("wandb", [(1, 256, 256, 3)], 3), ("wandb", ["figure", "value"], [["retrieval/r1", 0.5]], 3)]


def test_a_picture_has_the_targets_box_and_the_models() -> None:
    pixels = picture(SAMPLE).astype(int)
    assert pixels.shape == (256, 256, 3)
    assert pixels[160, 191, 2] > 100 > pixels[160, 191, 0], "blue: the target's right edge"
    assert pixels[32, 127, 0] > 100 > pixels[32, 127, 2], "orange: the model's"
