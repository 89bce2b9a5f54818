"""`predict --fiftyone`: the samples, by hand, in the form that FiftyOne 1.22.1 read (docs/how-to/predict.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensiglip.apps.cli import main
from opensiglip.data.tasks import Polygon
from opensiglip.data.text import TextPipeline
from opensiglip.inference.answers import Answer, Found
from opensiglip.models.model import Model
from opensiglip.reports.fiftyone import sample


def test_each_answer_becomes_the_label_that_fiftyone_has_for_it() -> None:
    box = (10.0, 20.0, 60.0, 45.0)
    answers = {
        "caption": "a fox",
        "classify": {"a fox": 0.75, "a cat": 0.25},
        "locate": Found("a fox", box, 0.5),
        "propose": [Found("fox", box, 0.25)],
        "describe": {"box": [0, 0, 100, 50], "text": "all"},
        "ask": Answer("1 2", [("cat", box)]),
    }
    made = sample(Path("/photos/a.jpg"), 100, 50, answers)
    place = {"_cls": "Detection", "bounding_box": pytest.approx([0.1, 0.4, 0.5, 0.5])}  # x, y, width, height
    assert made == {
        "filepath": str(Path("/photos/a.jpg").resolve()),
        "tags": [],
        "metadata": {"_cls": "ImageMetadata", "width": 100, "height": 50},
        "_media_type": "image",
        "caption": "a fox",
        "classify": {
            "_cls": "Classifications",
            "classifications": [
                {"_cls": "Classification", "label": "a fox", "confidence": 0.75},
                {"_cls": "Classification", "label": "a cat", "confidence": 0.25},
            ],
        },
        "locate": {"_cls": "Detections", "detections": [place | {"label": "a fox", "confidence": 0.5}]},
        "propose": {"_cls": "Detections", "detections": [place | {"label": "fox", "confidence": 0.25}]},
        "describe": {
            "_cls": "Detections",
            "detections": [{"_cls": "Detection", "label": "all", "bounding_box": [0, 0, 1, 1]}],
        },
        "ask": "1 2",
        "ask_boxes": {"_cls": "Detections", "detections": [place | {"label": "cat"}]},
    }


def test_an_outline_is_a_polyline_and_a_box_outside_the_image_no_label() -> None:
    answers = {"ask": Answer("p", Polygon(((10.0, 5.0), (50.0, 5.0), (10.0, 25.0))))}
    shown = sample(Path("a.jpg"), 100, 50, answers)["ask_outline"]["polylines"][0]
    assert shown["points"] == [[[0.1, 0.1], [0.5, 0.1], [0.1, 0.5]]] and shown["closed"]
    outside = sample(Path("a.jpg"), 9, 9, {"describe": {"box": [0, 0, 99, 9], "error": "outside"}})
    assert outside["describe"] == {"_cls": "Detections", "detections": []}


def test_predict_writes_samples_and_nothing_else(
    small: Any, pipeline: TextPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model.new(small("siglip").architecture, len(pipeline))
    torch.manual_seed(0)
    model.save_pretrained(tmp_path / "model", {"text": pipeline.save_pretrained(tmp_path / "model")})
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((24, 48, 3), np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    asked = ["predict", str(tmp_path / "model"), str(tmp_path / "photos"), "--classify", "a fox,a cat", "--fiftyone"]
    for _ in range(2):  # the same folder again
        assert main([*asked, str(tmp_path / "answers")]) == 0
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["samples.json"]  # metadata.json needs a schema
    samples = json.loads((tmp_path / "answers/samples.json").read_text())["samples"]
    assert [Path(one["filepath"]).name for one in samples] == ["a.png", "b.png"]
    assert [len(one["classify"]["classifications"]) for one in samples] == [2, 2]
    capsys.readouterr()
    assert main([*asked, str(tmp_path / "photos")]) == 2
    assert "holds a.png; name a new folder" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / "photos/a.png")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
