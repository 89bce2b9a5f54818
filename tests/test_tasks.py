"""Tasks as text: what is asked and answered of a scene is true, comes back from its text, and mixes by weight."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Small, collate, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import rectangle

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.fields.captions import compose, part_ids, task_words
from opensiglip.data.fields.field import Visit
from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.scenes.source import open_scenes
from opensiglip.data.sources.registry import open_source
from opensiglip.data.tasks import TASKS, Form, Polygon, find_task, parse_tasks
from opensiglip.data.tasks.mixture import Mixture, pair
from opensiglip.data.tasks.outline import area, fill, simplify, trace
from opensiglip.data.tasks.texts import questions
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.recipes import RECIPES, Recipe
from opensiglip.types import Batch

BOXES = (BoxFormat(), BoxFormat("x1 y1 x2 y2", 1000, ", "), BoxFormat.parse("loc"))
SIDE = 64

# What each paper's recipe asks of the three images below, as prefix and target, and its share of parallel captions.
# Boxes are y1 x1 y2 x2 in 500ths of the frame: of 32 pixels, (8, 16, 24, 32) is 250 125 500 375.
CAPTION, REFERRED, DESCRIBED = "a red fox", "the fox : 250 125 500 375", "250 125 500 375 : the fox"
LOCCA = [
    [("cap:", CAPTION), ("aref:", REFERRED), ("gcap:", DESCRIBED)],
    [("cap:", CAPTION)],
    [("aref:", REFERRED), ("gcap:", DESCRIBED)],
]
PAPERS = {
    "cap": ([[("", CAPTION)], [("", CAPTION)], []], 0.0),
    "cappa": ([[("", CAPTION)], [("", CAPTION)], []], 0.75),
    "locca": (LOCCA, 0.5),
    "siglip2": (LOCCA, 0.5),
}


def scene_visits(spec: str = "scenes:drawings=40,objects=4", count: int = 60, language: str = "en") -> list[Visit]:
    source = open_scenes(spec, split="val", pixels=SIDE)
    examples = [source.example(index, language) for index in range(count)]
    return [Visit(e, e.image, e.regions, e.captions[0]) for e in examples]


def form(boxes: BoxFormat = BOXES[0], side: int = SIDE) -> Form:
    return Form(boxes, side, side)


@pytest.fixture(scope="module")
def seen() -> list[Visit]:
    return scene_visits()


@pytest.fixture(scope="module")
def texts() -> TextPipeline:
    source = open_scenes("scenes:drawings=40,objects=4", pixels=SIDE)
    words = task_words(tuple(TASKS), BoxFormat(top=500))
    return TextPipeline.train(islice(source.texts(), 600), size=1600, length=64, words=words)


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_batch_says_what_its_recipe_describes(name: str, tmp_path: Path) -> None:
    """An image with a caption and a region, one with a caption alone and one with a region alone, from a folder."""
    region = {"bbox": [8, 16, 24, 32], "phrase": "the fox"}
    rows = [{"captions": ["A red fox"], "regions": [region]}, {"captions": ["A red fox"]}, {"regions": [region]}]
    for place, row in enumerate(rows):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{place}.png")
        row["file_name"] = f"{place}.png"
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row | {"split": "train"}) for row in rows))
    texts, share = PAPERS[name]
    recipe = RECIPES[name](size="tiny", resolution=32, length=48)
    words = task_words(recipe.tasks, recipe.boxes)
    pipeline = TextPipeline.train(["a red fox", "the fox"] * 9, size=900, length=48, words=words)
    plan = DataPlan(
        sources=[open_source(str(tmp_path))],
        frame=recipe.frame,
        fields=recipe.fields,
        pipeline=pipeline,
        batch_size=300,
        seed=3,
    )
    batch, parallel = Steps(plan)[0].parts[0], Counter[bool]()
    assert ("text" in batch) == (name == "siglip2")
    if "text" in batch:
        of_two = [pipeline.text(ids) for ids in batch["text"].tolist()]
        assert Counter(of_two) == {CAPTION: 200, "": 100}, "where there is no caption the text tower reads none"
    of_rows = [read_row(batch, row, pipeline) for row in range(300)]
    assert Counter(tuple(said) for said, _ in of_rows) == Counter([tuple(said) for said in texts] * 100)
    for said, modes in of_rows:
        assert not any(mode for (prefix, _), mode in zip(said, modes, strict=True) if prefix not in ("", "cap:"))
        parallel.update(mode for (prefix, _), mode in zip(said, modes, strict=True) if prefix in ("", "cap:"))
    assert parallel.total() == 200 and abs(parallel[True] / 200 - share) < 0.08


def read_row(batch: Batch, row: int, pipeline: TextPipeline) -> tuple[list[tuple[str, str]], list[bool]]:
    """A packed row's prefixes and targets as text, and which are parallel; what the decoder sees agrees with it."""
    policy, said, modes = pipeline.policy, list[tuple[str, str]](), list[bool]()
    inputs, targets, positions, segments, weights, full = (
        batch[field][row].tolist() for field in ("inputs", "targets", "positions", "segments", "weights", "full")
    )
    for number in range(max(segments) + 1):
        at, stop = segments.index(number), len(segments) - segments[::-1].index(number)
        first = next(place for place in range(at, stop) if weights[place])
        end = targets.index(policy.eos_id, first) + 1
        assert weights[first:end] == pytest.approx([1 / (end - first)] * (end - first)) and not any(weights[end:stop])
        assert positions[at:stop] == list(range(stop - at))
        assert len(set(full[at:stop])) == 1
        if full[at]:
            assert inputs[at:first] == targets[at:first], "the prefix, not shifted"
            assert inputs[first:stop] == [len(pipeline)] * (stop - first) and stop - at == policy.length
        else:
            assert inputs[at:stop] == [policy.pad_id, *targets[at : stop - 1]] and stop == end
        said.append((pipeline.text(targets[at:first]), pipeline.text(targets[first:end])))
        modes.append(full[at])
    return said, modes


@pytest.mark.parametrize("boxes", BOXES, ids=str)
@pytest.mark.parametrize("name", sorted(set(TASKS) - {"ocr"}))
def test_what_a_task_writes_reads_back_as_what_it_means(name: str, boxes: BoxFormat, seen: list[Visit]) -> None:
    task, asked_of = TASKS[name], 0
    for place, visit in enumerate(seen):
        asked = task.ask(visit, np.random.default_rng(place).random)
        if asked is None:
            continue
        asked_of += 1
        text = " ".join(form(boxes).write(part) for part in asked.target[asked.given :])
        answer, step = task.read(text, form(boxes)), SIDE / boxes.top
        match task.measure:
            case "box":
                assert np.allclose(answer, asked.truth, atol=step)
            case "boxes":
                assert [name for name, _ in answer] == [name for name, _ in asked.truth]
                assert all(
                    np.allclose(box, true, atol=step) for (_, box), (_, true) in zip(answer, asked.truth, strict=True)
                )
            case "mask":
                a, b = fill(answer.points, SIDE, SIDE), fill(asked.truth.points, SIDE, SIDE)
                assert (a & b).sum() / (a | b).sum() > 0.6, "twelve corners say most of it"
            case "caption":
                assert answer in asked.truth
            case _:
                assert answer == asked.truth
    assert asked_of > 20


@pytest.mark.parametrize("boxes", BOXES, ids=str)
def test_no_text_is_taught_that_our_own_reader_refuses(boxes: BoxFormat) -> None:
    """Boxes of a hair's breadth, on the edge; names that are numbers, signs or parts of a prompt."""
    places = [(0, 0, 0.01, SIDE), (SIDE - 0.01, SIDE - 0.01, SIDE, SIDE), (3, 3, 3.001, 3.001), (1, 1, 30, 30)]
    names = ["7", "500 500", "a ; b", ":", "ARef: x :", "a, b", "<loc0001>", "fox"]
    rng, image = np.random.default_rng(0), torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    corners = [0.0, 0.0, 0.01, 0.0, 0.01, 0.01]
    asked_of = Counter[str]()
    for place, name in zip(places * 2, names, strict=True):
        mask = {"label": name, "polygons": [corners]}
        example = Example(image, (Caption("x"),), (Region(place, {"en": name}),), extras={"masks": [mask]})
        visit = Visit.draw(example, Frame(SIDE), rng, "en")
        for task in (TASKS[kind] for kind in ("aref", "detect", "segment")):
            asked = task.ask(visit, rng.random)
            if asked is None:
                assert (task.name, name) == ("detect", "a ; b"), "which no answer could part"
                continue
            asked_of[task.name] += 1
            read = task.read(" ".join(form(boxes).write(part) for part in asked.target[asked.given :]), form(boxes))
            assert read, (task.name, name)
            if task.name == "detect":
                assert [said for said, _ in read] == [name]
    assert asked_of == {"aref": 8, "detect": 7, "segment": 8}


def test_answers_are_true_of_the_scene(seen: list[Visit]) -> None:
    kinds = Counter[str]()
    for visit in seen:
        names = [region.names["en"] for region in visit.regions]
        boxes = {region.names["en"]: region.bbox for region in visit.regions}
        everywhere = [(region.names["en"], region.bbox) for region in visit.regions]
        for question, answer in questions(visit):
            kinds[question.split()[0]] += 1
            if found := re.fullmatch(r"is there (?:an? )?(.+)\?", question):
                assert (found[1] in names) == (answer == "yes")
            elif found := re.fullmatch(r"what is (left of|right of|above|below) the (.+)\?", question):
                a = boxes[found[2]]
                there = [
                    name
                    for name, b in everywhere
                    if {
                        "left of": b[2] <= a[0],
                        "right of": b[0] >= a[2],
                        "above": b[3] <= a[1],
                        "below": b[1] >= a[3],
                    }[found[1]]
                ]
                assert answer in there
            else:
                found = re.fullmatch(r"where is the (.+)\?", question)
                assert found is not None
                x, y = boxes[found[1]][0] + boxes[found[1]][2], boxes[found[1]][1] + boxes[found[1]][3]
                assert ("left" in answer) <= (x < SIDE) and ("top" in answer) <= (y < SIDE)
    assert min(kinds[word] for word in ("is", "what", "where")) > 10


def test_counting_counts_names_and_nothing_there(seen: list[Visit]) -> None:
    counts = Counter[str]()
    for place, visit in enumerate(seen):
        asked = TASKS["count"].ask(visit, np.random.default_rng(place).random)
        assert asked is not None
        names = [region.names["en"] for region in visit.regions]
        assert asked.truth == str(names.count(str(asked.prefix[1])))
        counts[asked.truth] += 1
    assert counts["0"] > 5 and counts["1"] > 20 and counts["2"] > 0


def test_detection_asks_for_every_box_of_a_name(seen: list[Visit]) -> None:
    several = 0
    for place, visit in enumerate(seen):
        asked = TASKS["detect"].ask(visit, np.random.default_rng(place).random)
        assert asked is not None
        names = {part for part in asked.prefix[1:] if part != ";"}
        there = {(region.names["en"], region.bbox) for region in visit.regions if region.names["en"] in names}
        assert set(asked.truth) == there and len(asked.truth) == len(there)
        several += len(asked.truth) > 1
    assert several > 10


def test_an_outline_filled_is_its_mask(seen: list[Visit]) -> None:
    overlaps = []
    for visit in seen[:20]:
        for mask in visit.example.extras["masks"]:
            points = trace(mask)
            assert points is not None and area(points) > 0
            back = fill(points, SIDE, SIDE)
            overlaps.append((mask & back).sum() / (mask | back).sum())
    assert np.mean(overlaps) > 0.9, "less where a drawing has holes or pieces"
    square = np.zeros((9, 8), bool)
    square[2:6, 3:7] = True
    assert np.array_equal(fill(trace(square) or (), 8, 9), square)
    assert trace(np.zeros((4, 4), bool)) is None


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_tracing_any_mask_gives_its_largest_piece_without_holes(seed: int) -> None:
    mask = np.random.default_rng(seed).random((7, 7)) < 0.6
    points = trace(mask)
    if points is None:
        assert not mask.any()
        return
    back = fill(points, 7, 7)
    assert abs(area(points) - back.sum()) < 1e-9
    assert not (np.pad(back, 1)[1:, 1:-1] & ~np.pad(back, 1)[:-1, 1:-1])[:-1][~mask & ~back].any()


def test_few_corners_are_the_ones_that_matter() -> None:
    square = [(0.0, 0.0), (2.0, 0.0), (4.0, 0.0), (4.0, 4.0), (2.0, 4.1), (0.0, 4.0)]
    assert simplify(tuple(square), 4) == ((0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0))


def test_words_are_written_beside_the_drawings_and_change_nothing_else() -> None:
    plain, written = (open_scenes(f"scenes:drawings=40{words}", pixels=SIDE) for words in ("", ",words=2"))
    read = 0
    for index in range(40):
        before, after = plain.example(index, "en"), written.example(index, "en")
        assert before.regions == after.regions and before.captions == after.captions
        changed = (before.image != after.image).any(0).numpy()
        for word in after.extras["ocr"]:
            x1, y1, x2, y2 = map(int, word["bbox"])
            assert changed[y1:y2, x1:x2].mean() > 0.5
            changed[y1:y2, x1:x2] = False
            assert not after.extras["masks"][:, y1:y2, x1:x2].any()
        assert not changed.any()
        visit = Visit(after, after.image, after.regions, after.captions[0])
        asked = TASKS["ocr"].ask(visit, np.random.default_rng(0).random)
        if asked is not None:
            assert asked.truth == " ".join(word["text"] for word in after.extras["ocr"])
            read += 1
    assert 15 < read < 40


def test_a_folders_columns_are_asked() -> None:
    image = rectangle((10, 20, 40, 80), 100, 100)
    corners = [10, 20, 40, 20, 40, 80, 10, 80]
    extras = {
        "qa": [
            {"question": "what colour?", "answer": "red"},
            {"question": "welche Farbe?", "answer": "rot", "lang": "de"},
        ],
        "ocr": [{"text": "EXIT"}, {"text": "stop"}, 7, {"text": None}],
        "masks": [
            {"label": {"de": "Kasten", "en": "box"}, "polygons": [corners]},
            {"label": "line", "polygons": [[10, 20, 40, 20]]},
            {"label": "parts", "polygons": [corners, corners]},
            {"label": "no corners", "polygons": "none"},
            7,
        ],
    }
    example = Example(image, (Caption("a red box"),), (), "", extras)
    visit = Visit.draw(example, Frame(50), np.random.default_rng(0), "en")
    draw = np.random.default_rng(0).random

    def ask(name: str) -> Any:
        return TASKS[name].ask(visit, draw)

    assert ask("answer").truth == "red" and ask("question").truth == ("what colour?",)
    assert ask("ocr").truth == "EXIT stop"
    outlines = {(asked.prefix[1], asked.truth) for _ in range(20) if (asked := ask("segment")) is not None}
    assert outlines == {("box", Polygon(((5, 10), (20, 10), (20, 40), (5, 40))))}, "in the visit's pixels; none broken"


def test_a_crop_moves_outlines_with_boxes() -> None:
    source = open_scenes("scenes:drawings=40,objects=3", pixels=SIDE)
    moved = 0
    for index in range(20):
        visit = Visit.draw(source.example(index, "en"), Frame(48, crop_area=0.5), np.random.default_rng(index), "en")
        asked = TASKS["segment"].ask(visit, lambda: 0.0)
        if asked is None:
            continue
        xs, ys = zip(*asked.truth.points, strict=True)
        box = next(region.bbox for region in visit.regions if region.n_boxes == 1)
        assert min(xs) >= box[0] - 1 and max(xs) <= box[2] + 1 and min(ys) >= box[1] - 1 and max(ys) <= box[3] + 1
        moved += 1
    assert moved > 10


def test_location_tokens_are_one_token_each_and_y_first() -> None:
    boxes = BoxFormat.parse("loc")
    pipeline = TextPipeline.train(["a red box"] * 9, size=300, length=32).with_tokens(boxes.tokens())
    assert boxes.write((0, 50, 100, 100), 100, 100) == "<loc0512><loc0000><loc1023><loc1023>"
    ids = part_ids(("a red box", (0, 50, 100, 100)), Form(boxes, 100, 100), pipeline)
    assert ids[-4:] == tuple(pipeline.ids(f"<loc{n:04d}>")[0] for n in (512, 0, 1023, 1023))
    assert len(pipeline.ids("<loc0007>")) == 1 and len(pipeline) == 300 + 1024 - (300 - (len(pipeline) - 1024))
    assert boxes.read(pipeline.text(ids[-4:]), 100, 100) == pytest.approx((0, 50, 100, 100), abs=0.1)
    grammar = BoxGrammar(pipeline, boxes)
    assert len(grammar.numbers[0]) == 1024
    assert str(BoxFormat.parse(str(boxes))) == "loc" and boxes.read("<loc0512><loc0000><loc1023>", 9, 9) is None


@pytest.mark.parametrize("texts_an_image", [1, 4])
def test_weights_are_shares_among_the_tasks_that_can_serve(
    texts_an_image: int, seen: list[Visit], texts: TextPipeline
) -> None:
    """To 0.01 over 10,000 sequences; the shares by hand: a task's weight over those that the example can serve."""
    weights = {"caption": 4.0, "aref": 2.0, "answer": 4.0, "count": 1.0, "ocr": 2.0}
    served = [
        *(visit for visit in seen[:6]),
        replace(seen[6], regions=()),  # nothing to refer to, and nothing to count but what is absent
        replace(seen[7], caption=None),
        replace(seen[8], regions=(), caption=None, example=replace(seen[8].example, regions=(), extras={})),
    ]
    able = [
        {name: weight for name, weight in weights.items() if TASKS[name].ask(visit, lambda: 0.0) is not None}
        for visit in served
    ]
    assert [len(tasks) for tasks in able] == [4] * 6 + [3, 3, 0], "of scenes without words nothing can be read"
    expected = Counter[str]()
    for tasks in able:
        for name, weight in tasks.items():
            expected[name] += weight / sum(tasks.values()) / (len(able) - 1)  # type: ignore[assignment]
    field, drawn, rounds = Mixture(weights, texts=texts_an_image, boxes=BOXES[0]), Counter[str](), 0
    while drawn.total() < 10_000:
        for place, visit in enumerate(served):
            for target in field.draw(visit, np.random.default_rng([rounds, place]), texts):
                drawn[texts.text(target.prefix).split()[0].rstrip(":")] += 1
        rounds += 1
    for name, share in expected.items():
        assert abs(drawn[name] / drawn.total() - share) < 0.01, name


def test_a_sequence_is_repeated_only_where_its_task_has_no_other(seen: list[Visit], texts: TextPipeline) -> None:
    visit = next(visit for visit in seen if sum(region.n_boxes == 1 for region in visit.regions) >= 3)
    captions = Mixture({"caption": 1.0}, texts=3, boxes=BOXES[0]).draw(visit, np.random.default_rng(0), texts)
    assert len(captions) == 3 and len(set(captions)) == 1
    for seed in range(50):
        referred = Mixture({"aref": 1.0}, texts=2, boxes=BOXES[0]).draw(visit, np.random.default_rng(seed), texts)
        assert len(set(referred)) == 2


def test_a_task_with_nothing_to_say_leaves_its_place_to_another(seen: list[Visit], texts: TextPipeline) -> None:
    silent = replace(seen[0], regions=(), example=replace(seen[0].example, extras={}))
    field = Mixture({"aref": 100.0, "ocr": 100.0, "caption": 0.01}, texts=2, boxes=BOXES[0])
    assert [texts.text(one.prefix) for one in field.draw(silent, np.random.default_rng(0), texts)] == ["caption en"] * 2
    assert field.draw(replace(silent, caption=None), np.random.default_rng(0), texts) == []


def test_the_next_field_draws_the_same_whatever_a_mixture_finds(seen: list[Visit], texts: TextPipeline) -> None:
    field, after = Mixture(dict.fromkeys(TASKS, 1.0), texts=3, boxes=BOXES[0]), set()
    for visit in (*seen[:5], replace(seen[0], regions=(), caption=None)):
        rng = np.random.default_rng(5)
        field.draw(visit, rng, texts)
        after.add(rng.random())
    assert len(after) == 1


def test_sequences_fit_and_captions_are_cut(seen: list[Visit]) -> None:
    pipeline = TextPipeline.train(["x"], size=258, length=40)  # bytes: everything is long
    field = Mixture(dict.fromkeys(TASKS, 1.0), texts=4, boxes=BOXES[0])
    cut = 0
    for place, visit in enumerate(seen):
        for target in field.draw(visit, np.random.default_rng(place), pipeline):
            size = len(target.prefix) + len(target.target)
            assert size <= 40 and target.target[-1] == pipeline.policy.eos_id
            cut += size == 40
    assert cut > 10


def test_a_pair_is_a_prompt_and_a_shifted_answer(seen: list[Visit], texts: TextPipeline) -> None:
    field = Mixture({"answer": 1.0, "caption": 1.0}, texts=2, boxes=BOXES[0], paired=True)
    drawn = [field.draw(visit, np.random.default_rng(0), texts) for visit in seen[:3]]
    batch = field.collate([drawn[0], [], drawn[1]], texts)
    sizes = [len(drawn[0]), 0, len(drawn[1])]
    assert batch["sequences"].tolist() == sizes
    assert batch["owner"].tolist() == [0] * sizes[0] + [2] * sizes[2]
    for row, target in enumerate([*drawn[0], *drawn[1]]):
        assert tuple(batch["prompts"][row, : len(target.prefix)].tolist()) == target.prefix
        assert tuple(batch["answers"][row, : len(target.target)].tolist()) == target.target
        assert batch["answers_in"][row, 0] == texts.policy.pad_id
        assert torch.equal(batch["answers_in"][row, 1:], batch["answers"][row, :-1])
        assert batch["answers_weights"][row].sum().item() == pytest.approx(1)
    nothing = pair([[], []], pad_id=0)
    assert nothing["prompts"].shape == (1, 8) and len(nothing["answers_scored"]) == 0 and not nothing["owner"].any()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("caption:0", "weight of caption"),
        ("caption,caption:2", "twice"),
        ("see:1", "no such task: 'see'"),
        ("/no/such.py:task:2", "does not exist"),
        ("", "no such task"),
    ],
)
def test_bad_tasks_are_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        parse_tasks(text)


def test_weights_are_read() -> None:
    assert parse_tasks("caption:4, aref:2.5,detect") == {"caption": 4.0, "aref": 2.5, "detect": 1.0}


def test_the_how_to_s_task_is_asked_trained_and_read(tmp_path: Path, seen: list[Visit], texts: TextPipeline) -> None:
    page = (Path(__file__).parent.parent / "docs" / "how-to" / "add-a-task.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# my_tasks.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_tasks.py").write_text(code)
    name = f"{tmp_path / 'my_tasks.py'}:largest"
    assert parse_tasks(f"caption:2,{name}:3") == {"caption": 2.0, name: 3.0}
    task = find_task(name)
    for visit in seen[:10]:
        asked = task.ask(visit, lambda: 0.0)
        assert asked is not None
        sizes = [((r.bbox[2] - r.bbox[0]) * (r.bbox[3] - r.bbox[1]), r.names["en"]) for r in visit.regions]
        assert (max(sizes)[0], asked.truth) in sizes
        target = compose(asked, visit, BOXES[0], texts)
        assert task.read(texts.text(target.target), form()) == asked.truth
    with pytest.raises(UserError, match="has no task 'smallest'"):
        find_task(name.replace("largest", "smallest"))


@pytest.mark.parametrize("name", ["tasks", "pali"])
def test_a_mixture_of_all_tasks_makes_a_batch(name: str, small: Small, seen: list[Visit], texts: TextPipeline) -> None:
    recipe: Recipe = small(name, tasks=",".join(TASKS), texts=4, resolution=SIDE, length=64)
    batch = collate(recipe, draw(recipe, seen[:8], texts), texts)
    assert batch["sequences"].min() >= 3


@pytest.mark.parametrize("name", ["tasks", "pali"])
def test_rows_with_questions_alone_teach_what_needs_nothing_else(
    name: str, small: Small, texts: TextPipeline, tmp_path: Path
) -> None:
    """No caption, no region, no label: `answer` and `question` of the mixture still ask; labels ask nothing."""
    for place in range(2):
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / f"{place}.png")
    rows = [{"qa": [{"question": "which colour?", "answer": "black"}]}, {"label": "night"}]
    lines = [json.dumps(row | {"file_name": f"{place}.png", "split": "train"}) for place, row in enumerate(rows)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    recipe, source = small(name, resolution=SIDE, length=64), open_source(str(tmp_path))
    assert len(source) == 2 and list(source.texts()) == ["which colour?", "black"]
    examples = [source.example(index) for index in range(2)]
    visits = [Visit.draw(example, recipe.frame, np.random.default_rng(0), "en") for example in examples]
    asked, labelled = (row[1] for row in draw(recipe, visits, texts))
    said = {(texts.text(target.prefix), texts.text(target.target)) for target in asked}
    assert said == {("answer en which colour?", "black"), ("question en black", "which colour?")} and labelled == []
    assert collate(recipe, draw(recipe, visits, texts), texts)["sequences"].tolist() == [3, 0]
