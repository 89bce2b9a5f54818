"""Answers are judged by the measure that fits: each equal to what it says, and a mixture judged at the end of a run."""

import json
import sys
from pathlib import Path

import pytest

from opensiglip.apps.evaluate import evaluate
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.tasks import Polygon
from opensiglip.errors import UserError
from opensiglip.evaluation.metrics.boxes import box_accuracy, detection_ap, mask_iou
from opensiglip.evaluation.metrics.text import exact_match, word_accuracy
from opensiglip.models.model import Model
from opensiglip.training.run import train

A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 40.0)


def test_an_exact_match_hears_words_alone() -> None:
    assert exact_match("Top left.", "top  left") == 1
    assert exact_match("top", "top left") == exact_match("", "no") == 0


@pytest.mark.parametrize(
    ("answer", "share"),
    [("exit now please", 1.0), ("exit please", 2 / 3), ("exit not please", 2 / 3), ("", 0.0), ("a b c d e f g", 0.0)],
)
def test_word_accuracy_is_one_less_the_error_rate(answer: str, share: float) -> None:
    assert word_accuracy(answer, "Exit now, please") == pytest.approx(share)


def test_a_box_is_found_by_half_its_union() -> None:
    assert box_accuracy((0, 0, 10, 5), A) == 1 and box_accuracy((0, 0, 10, 4.9), A) == box_accuracy(None, A) == 0


def test_mask_iou_counts_pixels() -> None:
    square, half = (Polygon(((0, 0), (8, 0), (8, y), (0, y))) for y in (8, 4))
    assert mask_iou(square, square, 10, 10) == 1 and mask_iou(half, square, 10, 10) == 0.5
    assert mask_iou(None, square, 10, 10) == 0
    beside = Polygon(((4, 0), (12, 0), (12, 8), (4, 8)))  # half of each lies on half of the other
    assert mask_iou(square, beside, 12, 10) == mask_iou(beside, square, 12, 10) == pytest.approx(32 / 96)
    assert mask_iou(square, half, 10, 10) == 0.5, "what is drawn too much counts"


def test_detection_is_coco_s_ap() -> None:
    pytest.importorskip("pycocotools")
    truth = [[("fox", A), ("owl", B)], [("fox", B)]]
    assert detection_ap(truth, truth) == pytest.approx({"ap": 1, "ap50": 1})
    assert detection_ap([[], []], truth) == {"ap": 0, "ap50": 0}
    swapped = [[("owl", A), ("fox", B)], [("fox", A)]]
    assert detection_ap(swapped, truth) == pytest.approx({"ap": 0, "ap50": 0})
    # Three fifths of a box: right at 0.50, 0.55 and 0.60, wrong at the seven thresholds above.
    loose = [[("fox", (0.0, 0.0, 10.0, 6.01)), ("owl", B)], [("fox", (20.0, 20.0, 30.0, 32.02))]]
    assert detection_ap(loose, truth) == pytest.approx({"ap": (0.3 + 1) / 2, "ap50": 1}, abs=0.01)
    one_of_two = [[("fox", A), ("owl", B), ("never", A)], []]
    assert detection_ap(one_of_two, truth)["ap50"] == pytest.approx((0.504 + 1) / 2, abs=0.01)


def test_without_pycocotools_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r"pip install \"opensiglip\[eval\]\""):
        detection_ap([[("fox", A)]], [[("fox", A)]])


@pytest.mark.parametrize(
    ("recipe", "keywords"),
    [
        ("tasks", {"tasks": "caption:2,aref,count,answer,segment,ocr", "boxes": "loc"}),
        ("pali", {"tasks": "caption,count,answer", "frozen": False}),
        ("coca", {}),
    ],
)
def test_a_run_is_trained_judged_exported_and_read_again(
    recipe: str, keywords: dict[str, object], tmp_path: Path
) -> None:
    summary = train(
        recipe,
        data=["scenes:drawings=20,objects=2,pixels=32,words=1"],
        out=tmp_path / "run",
        size="tiny",
        resolution=32,
        length=40,
        steps=2,
        batch_size=8,
        workers=0,
        held_out=6,
        precision="fp32",
        vocabulary=500,
        **keywords,
    )
    judged = json.loads((tmp_path / "run" / "summary.json").read_text())["held_out"]
    if recipe == "coca":
        assert "image_to_text_r1" in json.dumps(judged) and "answers" not in judged
    else:
        names = {"caption_cider", "count_exact_match", "answer_exact_match"}
        names |= {"aref_accuracy", "segment_mask_iou", "ocr_word_accuracy"} if recipe == "tasks" else set()
        assert names <= set(judged["answers"]) and all(f"{name}_ci95" in judged["answers"] for name in names)
        assert judged["answers"]["count_asked"] == 6
    assert summary["losses"]["loss"]["last"] > 0
    model = Model.from_pretrained(tmp_path / "run" / "model")
    about = json.loads((tmp_path / "run" / "model" / "opensiglip.json").read_text())
    assert about["vocabulary"] == model.vocabulary and str(BoxFormat.parse(about["boxes"])) == about["boxes"]
    assert (about["boxes"] == "loc") == (recipe == "tasks")
    if recipe == "tasks":
        (tmp_path / "own.py").write_text("raise ZeroDivisionError")
        about["tasks"] = [f"{tmp_path / 'own.py'}:largest"]
        (tmp_path / "run" / "model" / "opensiglip.json").write_text(json.dumps(about))
        asked = (tmp_path / "run", "scenes:drawings=20,objects=2,pixels=32,words=1", ["answers"])
        with pytest.raises(UserError, match="opened with --trust only"):
            evaluate(*asked, count=2, quiet=True)
        with pytest.raises(ZeroDivisionError):
            evaluate(*asked, count=2, quiet=True, trust=True)
        about["tasks"].append("count")
        (tmp_path / "run" / "model" / "opensiglip.json").write_text(json.dumps(about))
        found = evaluate(*asked, count=2, quiet=True)["tasks"]["answers"]
        assert found["count_asked"] == 2 and found["left_out_without_trust"] == 1
