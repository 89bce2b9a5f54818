"""Published protocols on tiny folders of each layout, with figures worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle
from PIL import Image
from test_evaluate import INKS, oracle

from opensiglip.apps.cli import main
from opensiglip.apps.evaluate import evaluate
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Example
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import BenchmarkResult
from opensiglip.evaluation.benchmarks import grounding
from opensiglip.evaluation.protocols import imagenet, referring
from opensiglip.evaluation.protocols.aro import symmetric
from opensiglip.evaluation.protocols.protocol import Judged, cropped, nearest
from opensiglip.evaluation.protocols.registry import PROTOCOLS
from opensiglip.reports.evaluation_page import table

SIDE = 32


def paint(path: Path, left: str, right: str | None = None, border: str | None = None) -> None:
    """A picture of one ink, or of two side by side, or with a border of an eighth of its side in another."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:] = INKS[border or left]
    edge = SIDE // 16 if border else 0
    pixels[edge : SIDE - edge, edge : SIDE - edge] = INKS[left]
    if right:
        pixels[:, SIDE // 2 :] = INKS[right]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)


def store(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def judge(name: str, folder: Path, model: Oracle | None = None, **settings: Any) -> dict[str, Any]:
    return evaluate(model or oracle(), str(folder), benchmark=name, quiet=True, **settings)  # type: ignore[arg-type]


def karpathy(folder: Path, name: str, filepath: str | None) -> None:
    """Red, green and blue test images; one of green's captions says blue; red has a sixth, false one; one of train."""
    texts = {color: [f"a {color} car {number}" for number in range(5)] for color in INKS}
    texts["green"][2], texts["red"] = "a blue car", [*texts["red"], "a blue lie"]
    rows = []
    for color in INKS:
        row = {"filename": f"{color}.png", "split": "test", "sentences": [{"raw": text} for text in texts[color]]}
        rows.append(row | ({"filepath": filepath} if filepath else {}))
        paint(folder / (filepath or "flickr30k-images") / f"{color}.png", color)
    rows.append({"filename": "x.png", "split": "restval", "sentences": [{"raw": "a red train"}]})
    store(folder / name, {"images": rows})


@pytest.mark.parametrize(
    ("name", "file", "filepath"),
    [("coco-5k", "dataset_coco.json", "val2014"), ("flickr30k", "dataset_flickr30k.json", None)],
)
def test_retrieval_takes_the_test_images_and_five_captions_each(
    name: str, file: str, filepath: str | None, tmp_path: Path
) -> None:
    karpathy(tmp_path, file, filepath)
    record = judge(name, tmp_path)
    found = record["tasks"]["retrieval"]
    assert found["images"] == 3 and found["captions"] == 15
    assert found["text_to_image_r1"] == pytest.approx(14 / 15), "green's caption that says blue finds blue"
    # Of equal captions the first counts, and that one is green's: blue misses.
    assert found["image_to_text_r1"] == pytest.approx(2 / 3)
    assert record["notes"][0].startswith(f"retrieval: 3 of the {PROTOCOLS[name].sizes['retrieval']:,} published")
    # The oracle's embeddings have 3 numbers and its images 16 tokens: CLIP's 512 are nearest.
    figures = record["protocol"]["published"]["figures"]
    assert record["protocol"]["published"]["model"] == "CLIP B/16-224"
    assert figures["retrieval: text_to_image_r1"] == [pytest.approx(14 / 15), 0.331 if name == "coco-5k" else 0.621]


def fish() -> Oracle:
    """Reads three of ImageNet's names as colours; all others are near none of them."""
    known = {"tench": [1.0, 0.9, 0], "goldfish": [0, 1.0, 0], "great white shark": [0, 0, 1.0]}

    def read(texts: Any) -> torch.Tensor:
        found = [next((color for name, color in known.items() if name in text), [1.0, 1, 1]) for text in texts]
        return torch.tensor(found)

    return oracle(text=read)


@pytest.mark.parametrize("layout", ["folders", "kaggle"])
def test_imagenet_is_a_choice_among_a_thousand_classes(layout: str, tmp_path: Path) -> None:
    """Of five images one is a goldfish to the eye and a tench, the next best, by its label, one a shark and a goldfish.

    Borders are cropped away.
    """
    wnids = {"a": ("n01440764", "red"), "b": ("n01443537", "green"), "c": ("n01484850", "blue")}
    wnids |= {"d": ("n01440764", "green"), "e": ("n01443537", "blue")}
    lines = ["ImageId,PredictionString"]
    for name, (wnid, color) in wnids.items():
        place = f"val/{wnid}/{name}.png" if layout == "folders" else f"ILSVRC/Data/CLS-LOC/val/{name}.JPEG"
        paint(tmp_path / place, color, border="green" if layout == "folders" else None)
        lines.append(f"{name},{wnid} 85 1 499 272")
    if layout == "folders":
        paint(tmp_path / "val" / "no class of theirs" / "x.png", "red")
    else:
        store(tmp_path / "LOC_val_solution.csv", "\n".join(lines))
    source = imagenet.validation(tmp_path)
    first = source.example(0).image
    assert first.shape[-1] == 28 and first[0].min() > 250 and first[1:].max() < 5, "the border is not seen"
    record = judge("imagenet", tmp_path, fish())
    found = record["tasks"]["zeroshot"]
    assert found["classes"] == 1000 and found["images"] == 5 and found["prompts"] == 81
    assert found["accuracy"] == pytest.approx(3 / 5) and found["accuracy_top5"] == pytest.approx(4 / 5)
    few = judge("imagenet", tmp_path, fish(), count=2, seed=3)
    assert few["examples"] == 2 and few["command"].endswith(f" --benchmark imagenet {tmp_path} --count 2 --seed 3")


def test_the_names_of_imagenets_classes_stand_in_its_order() -> None:
    wnids = list(imagenet.classes())
    assert len(wnids) == 1000 and wnids == sorted(wnids)
    assert imagenet.classes()["n03126707"] == "construction crane"


def test_xm3600_is_a_mean_over_languages(tmp_path: Path) -> None:
    """English is understood; of German nothing, so each caption finds the first image: (1 + 1/3) / 2."""
    lines = []
    for color, german in zip(INKS, ("rotes", "gruenes", "blaues"), strict=True):
        paint(tmp_path / "images" / f"{color}.jpg", color)
        texts = {"en": {"caption": [f"a {color} car"]}, "de": {"caption": [f"ein {german} Auto"]}}
        lines.append(json.dumps({"image/key": color, "image/locale": "de", **texts}))
    store(tmp_path / "captions.jsonl", "\n".join(lines))
    found = judge("xm3600", tmp_path)["tasks"]["retrieval"]
    assert found["languages"]["en"]["text_to_image_r1"] == 1
    assert found["text_to_image_r1"] == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("name", "by"), [("refcoco", "unc"), ("refcocog", "umd")])
def test_every_sentence_of_a_referring_expression_counts(
    own: bool, name: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two say "fox" of one box and one "animal", which alone is found: 1/3, where a phrase counted once gives 1/2."""
    splits = referring.SETS[name][1]
    images = [{"id": n, "file_name": f"COCO_train2014_{n}.png", "width": SIDE, "height": SIDE} for n in range(1, 5)]
    for image in images:
        paint(tmp_path / "images" / "train2014" / str(image["file_name"]), "red")
    boxes = [{"id": n, "bbox": [2, 2, 10, 10]} for n in range(1, 5)]
    store(tmp_path / name / "instances.json", {"images": images, "annotations": boxes})
    sentences = [{"sent": "fox"}, {"sent": "fox"}, {"sent": "animal"}]
    refs = [
        {"image_id": n, "ann_id": n, "split": split, "sentences": sentences}
        for n, split in enumerate(("train", *splits), 1)
    ]
    store(tmp_path / name / f"refs({by}).json", refs)
    box = (2.0, 2.0, 12.0, 12.0)
    monkeypatch.setattr(
        grounding, "locate", lambda _, __, ___, phrases, ____: [box if one == "animal" else None for one in phrases]
    )
    writer = oracle(decoder=object(), boxes=BoxFormat(), tasks=("aref",))
    asked: list[Any] = []

    def fit(model: Oracle, context: Any) -> tuple[Oracle, float]:
        asked.append((len(context.training_examples(model).examples), context.probe.tasks))
        return writer, 0.25

    monkeypatch.setattr(referring, "fit_probe", fit)
    record = judge(name, tmp_path, writer if own else oracle())
    assert list(record["tasks"]) == list(splits)
    assert all(found["accuracy"] == pytest.approx(1 / 3) for found in record["tasks"].values())
    assert all(found["phrases"] == 3 for found in record["tasks"].values())
    assert asked == ([] if own else [(1, ("aref",))]), "the decoder is fitted once, to the train pool"
    assert ("probe_loss" in record["tasks"]["val"]) is not own


def test_sugarcrepe_has_seven_kinds(tmp_path: Path) -> None:
    """One pair of each kind; of the kinds of objects the negative is the true one."""
    paint(tmp_path / "val2017" / "1.png", "red")
    for kind in ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"):
        texts = ["a red car", "a blue car"]
        caption, negative = texts[::-1] if kind.endswith("obj") else texts
        store(
            tmp_path / "data" / f"{kind}.json",
            {"0": {"filename": "1.png", "caption": caption, "negative_caption": negative}},
        )
    record = judge("sugarcrepe", tmp_path)
    found = record["tasks"]["compositionality"]
    assert found["pairs"] == 7 and found["similarity"] == pytest.approx(4 / 7)
    assert found["kinds"]["swap_att"]["similarity"] == 1 and found["kinds"]["swap_obj"]["similarity"] == 0
    assert record["protocol"]["published"] is None


def question(kind: str, right: bool, part: str) -> dict[str, Any]:
    """Of the left half, which is red, of a picture whose right half is blue."""
    texts = ["a red car", "a blue car"]
    true, false = texts if right else texts[::-1]
    row = {"image_path": "1.png", "true_caption": true, "false_caption": false}
    row |= {"relation_name": kind} if part == "relation" else {"attributes": kind.split("_")}
    return row | {"bbox_x": 0, "bbox_y": 0, "bbox_w": SIDE // 2, "bbox_h": SIDE}


def test_aro_is_a_mean_over_kinds_of_what_stands_in_a_box(tmp_path: Path) -> None:
    """Relations: (1/2 + 1) / 2, without the symmetric "near". Attributes: 20 of 25, without the pair met once."""
    paint(tmp_path / "images" / "1.png", "red", "blue")
    relations = [("on", True), ("on", False), ("under", True), ("near", False)]
    store(tmp_path / "visual_genome_relation.json", [question(*row, "relation") for row in relations])
    attributes = [("old_new", number < 20) for number in range(25)] + [("wet_dry", False)]
    store(tmp_path / "visual_genome_attribution.json", [question(*row, "attribution") for row in attributes])
    assert "near" in symmetric() and "on" not in symmetric()
    tasks = judge("aro", tmp_path)["tasks"]
    assert tasks["relation"]["similarity"] == pytest.approx(2 / 4)
    assert tasks["relation"]["macro_similarity"] == pytest.approx((1 / 2 + 1) / 2)
    assert tasks["attribution"]["similarity"] == pytest.approx(20 / 26)
    assert tasks["attribution"]["macro_similarity"] == pytest.approx(20 / 25)
    assert tasks["attribution"]["kinds_in_mean"] == 1


def test_a_box_beyond_the_image_s_edge_is_cut_to_it() -> None:
    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    for box, expected in (((-2, -3, 4, 4), image[:, :4, :4]), ((6, 5, 9, 9), image[:, 6:, 5:]), ((9, 9, 0, 0), None)):
        found = cropped(Example(image, ()), *box).image
        assert torch.equal(found, image[:, 7:, 7:] if expected is None else expected)


def test_published_figures_stand_under_their_names() -> None:
    """Of SigLIP 2 B/16-256, and of CapPa for ARO, as Tables 1, 5 and 6 have them."""
    expected = {
        "imagenet": {"zeroshot: accuracy": 0.791},
        "coco-5k": {"retrieval: text_to_image_r1": 0.532, "retrieval: image_to_text_r1": 0.697},
        "flickr30k": {"retrieval: text_to_image_r1": 0.817, "retrieval: image_to_text_r1": 0.944},
        "xm3600": {"retrieval: text_to_image_r1": 0.407, "retrieval: image_to_text_r1": 0.51},
        "refcoco": {"val: accuracy": 0.8376, "testA: accuracy": 0.8621, "testB: accuracy": 0.7957},
        "refcoco+": {"val: accuracy": 0.7426, "testA: accuracy": 0.7985, "testB: accuracy": 0.6583},
        "refcocog": {"val: accuracy": 0.7725, "test: accuracy": 0.7783},
    }
    for name, figures in expected.items():
        (row,) = (row for row in PROTOCOLS[name].published if row.model == "SigLIP 2 B/16-256")
        assert row.figures == figures, name
    (cappa,) = (row for row in PROTOCOLS["aro"].published if row.model == "CapPa B/16-224")
    assert cappa.figures["relation: macro_likelihood"] == 0.867
    assert cappa.figures["attribution: macro_likelihood"] == 0.857


def test_the_nearest_published_model_is_that_of_its_width_tokens_and_name() -> None:
    protocol, metrics = PROTOCOLS["coco-5k"], {"retrieval: text_to_image_r1": 0.1}
    judged = Judged(BenchmarkResult({}), 1, 768, 200)
    names = {}
    for model, changes in {
        "runs/mine": {},
        "a/siglip-base": {"tokens": 256},
        "a/siglip2-base": {"tokens": 256},
        "wide": {"width": 1100, "tokens": 900},
    }.items():
        found = nearest(protocol, metrics, model, replace(judged, **changes))  # type: ignore[arg-type]
        assert found is not None
        names[model] = found.model
    assert names == {
        "runs/mine": "SigLIP 2 B/16-224",
        "a/siglip-base": "SigLIP B/16-256",
        "a/siglip2-base": "SigLIP 2 B/16-256",
        "wide": "SigLIP 2 So400m/16-512",
    }
    assert nearest(PROTOCOLS["aro"], {"relation: similarity": 0.5}, "x", judged) is None


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_a_folder_without_the_files_is_told_where_they_come_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="https://"):
        judge(name, tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        judge(name, tmp_path / "nowhere")


def test_ours_stands_beside_the_published_figure_and_what_differs(tmp_path: Path) -> None:
    karpathy(tmp_path, "dataset_coco.json", "val2014")
    record = judge("coco-5k", tmp_path, out=tmp_path / "out")
    told = table(record)
    assert "CLIP B/16-224, the nearest in width and tokens (SigLIP 2 (arXiv:2502.14786), Table 1)" in told
    assert "retrieval: text to image r1                     0.9333     0.3310" in told
    assert "differs     Of each image the first five captions count, 25,000; big_vision takes all 25,010." in told
    assert record["command"] == f"opensiglip eval oracle --benchmark coco-5k {tmp_path}"
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "first five captions count" in page and "CLIP B/16-224" in page and "0.3310" in page
    assert "retrieval: text → image, first hit (R@1)" in page


def test_a_model_that_can_not_be_asked_is_refused_in_a_sentence(tmp_path: Path) -> None:
    karpathy(tmp_path, "dataset_coco.json", "val2014")
    with pytest.raises(
        UserError,
        match=r"^oracle can't be evaluated with --benchmark coco-5k: the model has no text tower .*; name another",
    ):
        judge("coco-5k", tmp_path, replace(oracle(), text=None))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--benchmark imagenot {0}", "--benchmark 'imagenot' is unknown; there are imagenet, coco-5k,"),
        ("--benchmark coco-5k {0} --tasks retrieval", "--benchmark sets what is evaluated and how; leave out --tasks"),
        ("{0}", "is an extra argument"),
        ("--tasks retrieval", "--data is missing"),
        ("--benchmark coco-5k {0} --count 0", "at least 1"),
        ("--benchmark refcoco {0} --box-format xywh", "leave out --box-format"),
    ],
)
def test_bad_words_are_one_sentence(words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "runs/none", *words.format(tmp_path).split()]) == 2
    assert said in capsys.readouterr().err
