"""Contrasts: the caption is true of the scene by its boxes, the negative is not."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Oracle
from PIL import Image

from opensiglip.data.example import Box, Caption, Example
from opensiglip.data.scenes.contrasts import Contrast, negatives
from opensiglip.data.scenes.phrases import Clause, Placed, Plan, part_of_image
from opensiglip.data.scenes.source import open_scenes
from opensiglip.data.sources.registry import open_source
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmarks.contrasts import contrasts
from opensiglip.evaluation.run import run_evaluation
from opensiglip.models.model import Model
from opensiglip.types import Features

SIDE = 64
KINDS = {"replace relation", "swap objects", "replace place", "change count", "replace object"}


@cache
def drawn_examples() -> list[Example]:
    scenes = open_scenes("scenes:drawings=60,languages=en+de+ja", split="val", pixels=SIDE)
    return [scenes.example(index) for index in range(150)]


def strangers() -> list[Placed]:
    return [placed for example in drawn_examples() for placed in example.extras["scene_plan"][0]]


def pairs(example: Example, seed: int = 0) -> list[Contrast]:
    return contrasts(example, strangers(), ["en", "de", "ja"], seed)


def middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def holds(place: str, box: Box, other: Box) -> bool:
    """Said of centres alone: what is left of something else can't be right of it."""
    (x, y), (u, v) = middle(box), middle(other)
    return {"left": x < u, "right": x > u, "above": y < v, "below": y > v}[place]


def clauses() -> Iterator[tuple[list[Placed], Plan, str, Clause, Clause]]:
    for example in drawn_examples():
        scene, plan = example.extras["scene_plan"]
        for kind, clause, other in negatives(plan):
            yield scene, plan, kind, clause, other


def test_every_negative_clause_is_false_and_what_it_replaces_is_true() -> None:
    seen = Counter[str]()
    for scene, plan, kind, clause, other in clauses():
        seen[kind] += 1
        assert clause in plan.caption
        codes = Counter(placed.code for placed in scene)
        for one, true in ((clause, True), (other, False)):
            subject = scene[one.subject]
            if one.landmark is not None:
                assert codes[subject.code] == codes[scene[one.landmark].code] == 1
                assert holds(one.place, subject.box, scene[one.landmark].box) == true
            elif one.place:
                assert codes[subject.code] == 1
                assert (part_of_image(subject.box, SIDE) == one.place) == true
            else:
                assert (codes[subject.code] == one.boxes) == true
    assert set(seen) == KINDS - {"replace object"} and min(seen.values()) > 10


def test_the_texts_differ_and_only_the_first_is_the_scenes_caption() -> None:
    kinds = Counter[str]()
    for example in drawn_examples():
        own = {caption.text for caption in example.captions}
        for pair in pairs(example):
            kinds[pair.kind] += 1
            assert pair.caption in own and pair.negatives[0] not in own
    assert set(kinds) == KINDS


def test_a_drawing_that_takes_anothers_place_stands_nowhere_in_the_scene() -> None:
    for example in drawn_examples():
        scene, _ = example.extras["scene_plan"]
        codes = {placed.code for placed in scene}
        (pair,) = contrasts(example, strangers(), ["ja"], 3)[-1:]  # where two of a thing have the name of one
        assert pair.kind == "replace object"
        new = {placed.code for placed in strangers() if placed.names["ja"] in pair.negatives[0]}
        assert new - codes, "a name has come"
        assert any(placed.names["ja"] not in pair.negatives[0] for placed in scene), "and one has gone"


def test_the_same_seed_gives_the_same_pairs_and_another_another_stranger() -> None:
    example = drawn_examples()[0]
    assert pairs(example, 1) == pairs(example, 1)
    assert len({pairs(example, seed)[-1].negatives for seed in range(20)}) > 5


@pytest.mark.parametrize(
    ("given", "negatives"),
    [
        ("a green box", ("a green box",)),
        (["a green box", " ", 7, "box a red"], ("a green box", "box a red")),
        ("  ", ()),
        (7, ()),
        ([], ()),
        (None, ()),
    ],
)
def test_a_row_of_a_folder_names_its_own(given: object, negatives: tuple[str, ...]) -> None:
    example = Example(drawn_examples()[0].image, (Caption("a red box"),), extras={"negative_caption": given})
    assert contrasts(example, [], ["en"], 0) == ([Contrast("pairs", "a red box", negatives)] if negatives else [])


def sugar_crepe(folder: Path, **changes: Any) -> str:
    """A file of two pairs, of which `changes` go into the first, with the images that they name."""
    (folder / "images").mkdir()
    for name in ("1.png", "images/2.png"):
        Image.new("RGB", (20, 10), "red").save(folder / name)
    pairs = [
        {"filename": f"{number}.png", "caption": "a red box", "negative_caption": "a green box"} for number in (1, 2)
    ]
    (folder / "add_att.json").write_text(
        json.dumps({str(n): pair for n, pair in enumerate([pairs[0] | changes, pairs[1]])})
    )
    return str(folder / "add_att.json")


def test_sugar_crepes_files_are_sources(tmp_path: Path) -> None:
    source = open_source(sugar_crepe(tmp_path), split="val")
    examples = [source.example(index) for index in range(len(source))]
    assert [tuple(example.image.shape) for example in examples] == [(3, 10, 20)] * 2
    assert contrasts(examples[1], [], ["en"], 0) == [Contrast("add_att", "a red box", ("a green box",))]
    with pytest.raises(UserError, match="test set"):
        open_source(source.name, split="train")


SCORES = {"a red box": 0.7, "red a box": 0.1, "box a red": 0.6, "box red a": 0.5, "a box red": 0.2, "a green box": 0.8}


@pytest.mark.parametrize(("worst", "right"), [(0.6, 1.0), (0.7, 0.0), (0.9, 0.0)])
def test_of_several_negatives_a_caption_has_to_beat_each(
    worst: float, right: float, tmp_path: Path, small: Any, pipeline: Any
) -> None:
    """ARO-Order's four, from the file to the figure: one negative as likely as the caption, not the last, is enough."""
    oracle = Oracle.of(Model.new(small("siglip").architecture, len(pipeline)), pipeline, name="by hand")

    def angle(text: str) -> torch.Tensor:
        cosine = torch.tensor(worst if text == "box a red" else SCORES[text])
        return torch.stack([cosine, (1 - cosine**2).sqrt()])

    judged = replace(
        oracle,
        vision=lambda images: Features(torch.tensor([[1.0, 0.0]] * len(images)), torch.zeros(len(images), 16, 2)),
        text=lambda texts: torch.stack([angle(text) for text in texts]),
    )
    order = ["red a box", "box a red", "box red a", "a box red"]
    found = run_evaluation(judged, sugar_crepe(tmp_path, negative_caption=order), ["compositionality"], count=2)
    figures, values = (found.record[name]["compositionality"] for name in ("tasks", "values"))
    assert figures["pairs"] == 2 and figures["chance"] == pytest.approx((1 / 5 + 1 / 2) / 2)
    assert values["similarity"]["scores"] == [right, 0.0], "the second pair's only negative is likelier"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"filename": "../1.png"}, "path leaves the folder"),
        ({"filename": "/etc/hostname"}, "path leaves the folder"),
        ({"filename": "7.png"}, "image file is missing"),
        ({"caption": 7}, "no caption or no negative_caption"),
        ({"negative_caption": " "}, "no caption or no negative_caption"),
        ({"negative_caption": ["a green box", 3]}, "negative_caption is neither a string nor a list of strings"),
    ],
)
def test_a_pair_that_can_not_be_used_is_counted(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    source = open_source(sugar_crepe(tmp_path, **changes), split="val")
    assert len(source) == 1 and source.skipped == {reason: 1}


@pytest.mark.parametrize("text", ["7", "{", '{"0": 3}', "[" * 100_000])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(UserError):
        open_source(str(tmp_path / "pairs.json"), split="val")
