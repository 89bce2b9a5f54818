"""The decoder's rows: what each task says, what is weighted, and that a parallel row gives nothing away."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from prefixes import grounded_prefix, referring_prefix
from toys import rectangle

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.fields.captions import Captions, Target, box_ids, pack
from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline

BOXES = BoxFormat("y1 x1 y2 x2", 100)
TASKS = ("cap", "aref", "gcap")
EOS, PAD, MASK = 1, 0, 999


def a_visit(text: str | None = "a red box", *regions: Region) -> Visit:
    caption = None if text is None else Caption(text)
    image = rectangle((10, 20, 40, 80), 100, 100)
    return Visit(Example(image, (), regions), image, regions, caption)


RED = Region((10, 20, 40, 80), {"en": "the red box", "de": "die rote box"})


def drawn(
    visit: Visit, pipeline: TextPipeline, *, tasks: tuple[str, ...] = TASKS, parallel: float = 0.0, seed: int = 0
) -> list[Target]:
    return Captions(tasks, parallel=parallel, boxes=BOXES).draw(visit, np.random.default_rng(seed), pipeline)


def packed(*row: Target, length: int = 12) -> dict[str, torch.Tensor]:
    return pack([list(row)], length=length, pad_id=PAD, mask_id=MASK)


def test_the_three_tasks_say_what_locca_says(pipeline: TextPipeline) -> None:
    targets = drawn(a_visit("A red box", RED), pipeline)
    said = [(pipeline.text(t.prefix), pipeline.text(t.target)) for t in targets]
    assert said == [
        ("cap:", "a red box"),
        ("aref:", "the red box : 20 10 80 40"),
        ("gcap:", "20 10 80 40 : the red box"),
    ]
    assert all(t.target[-1] == EOS and EOS not in t.prefix for t in targets)


def test_decoding_goes_on_where_training_was(pipeline: TextPipeline) -> None:
    _, aref, gcap = drawn(a_visit("a red box", RED), pipeline)
    written = BOXES.write(RED.bbox, 100, 100)
    assert (*referring_prefix(pipeline, "the red box"), *box_ids(pipeline, written), EOS) == aref.prefix + aref.target
    assert (*grounded_prefix(pipeline, written), *pipeline.ids(" the red box"), EOS) == gcap.prefix + gcap.target


def test_a_plain_caption_has_no_prefix(pipeline: TextPipeline) -> None:
    field = Captions(("cap",), prefix=False, boxes=BOXES)
    (target,) = field.draw(a_visit("a red box", RED), np.random.default_rng(0), pipeline)
    assert target == Target((), (*pipeline.ids(" a red box"), EOS))


def test_what_is_not_there_gives_no_sequence(pipeline: TextPipeline) -> None:
    several, wordless = replace(RED, n_boxes=2), replace(RED, phrases={})
    long = replace(RED, phrases={"en": "red " * pipeline.policy.length})
    assert drawn(a_visit(None), pipeline) == []
    assert len(drawn(a_visit(None, RED), pipeline)) == 2
    for region in (several, wordless, long):
        assert len(drawn(a_visit("a box", region), pipeline)) == 1


def test_a_long_caption_is_cut_and_keeps_its_eos(pipeline: TextPipeline) -> None:
    target = drawn(a_visit("red " * pipeline.policy.length), pipeline)[0]
    assert len(target.prefix) + len(target.target) == pipeline.policy.length and target.target[-1] == EOS


def test_a_phrase_comes_in_the_captions_language(pipeline: TextPipeline) -> None:
    visit = replace(a_visit("ein roter kasten", RED), caption=Caption("ein roter kasten", "de"))
    assert "die rote box" in pipeline.text(drawn(visit, pipeline)[1].target)


def test_boxes_follow_the_image_of_the_visit(pipeline: TextPipeline) -> None:
    visit = replace(a_visit(None, RED), image=torch.zeros(3, 200, 100, dtype=torch.uint8))
    assert "10 10 40 40" in pipeline.text(drawn(visit, pipeline)[0].target)


def test_parallel_is_drawn_per_example_for_captions_alone(pipeline: TextPipeline) -> None:
    visit, modes = a_visit("a red box", RED), Counter[tuple[bool, ...]]()
    for seed in range(400):
        modes[tuple(t.parallel for t in drawn(visit, pipeline, parallel=0.75, seed=seed))] += 1
    assert modes.keys() == {(True, False, False), (False, False, False)}
    assert abs(modes[True, False, False] / 400 - 0.75) < 0.065  # three standard deviations
    assert all(not t.parallel for t in drawn(visit, pipeline, parallel=0.0))
    assert drawn(visit, pipeline, parallel=1.0)[0].parallel


@pytest.mark.parametrize("visit", [a_visit(None), a_visit("a box"), a_visit("a box", RED, RED, RED)])
def test_the_next_field_draws_the_same_whatever_this_example_holds(visit: Visit, pipeline: TextPipeline) -> None:
    rng, counted = np.random.default_rng(5), np.random.default_rng(5)
    Captions(TASKS, parallel=0.5, boxes=BOXES).draw(visit, rng, pipeline)
    counted.random(3)
    assert rng.random() == counted.random()


def test_every_region_is_drawn(pipeline: TextPipeline) -> None:
    regions = [replace(RED, phrases={"en": f"box {n}"}) for n in range(3)]
    seen = Counter(drawn(a_visit("a", *regions), pipeline, tasks=("aref",), seed=seed)[0].target for seed in range(60))
    assert len(seen) == 3


@pytest.mark.parametrize(("asked", "there"), [(2, 5), (3, 3), (5, 2), (1, 4)])
def test_several_regions_are_asked_for_none_twice_and_all_alike_often(
    asked: int, there: int, pipeline: TextPipeline
) -> None:
    visit = a_visit("a", *(replace(RED, phrases={"en": f"box {n}"}) for n in range(there)))
    field, seen, rounds = Captions(TASKS, boxes=BOXES, regions=asked), Counter[Target](), 400
    for seed in range(rounds):
        targets = field.draw(visit, np.random.default_rng(seed), pipeline)
        assert len(targets) == len(set(targets)) == 1 + 2 * min(asked, there)
        seen.update(targets[1:])
    share = min(asked, there) / there
    assert len(seen) == 2 * there
    assert all(abs(n / rounds - share) <= 4 * (share * (1 - share) / rounds) ** 0.5 for n in seen.values())


def test_several_captions_of_an_image_are_of_the_visits_language_and_none_comes_twice(pipeline: TextPipeline) -> None:
    texts = [Caption("a"), Caption("b"), Caption("c"), Caption("ein d", "de")]
    visit = a_visit("a", RED)
    visit = replace(visit, caption=texts[0], example=replace(visit.example, captions=tuple(texts)))
    seen = Counter[str]()
    for count, seed in ((2, seed) for seed in range(40)):
        field = Captions(TASKS, parallel=1.0, boxes=BOXES, captions=count)
        said = field.draw(visit, np.random.default_rng(seed), pipeline)
        assert [target.parallel for target in said] == [True, True, False, False]
        assert pipeline.text(said[0].target) == "a", "the visit's own is the first"
        seen[pipeline.text(said[1].target)] += 1
    assert seen.keys() == {"b", "c"}
    field, counted, rng = Captions(TASKS, boxes=BOXES, captions=5), np.random.default_rng(5), np.random.default_rng(5)
    assert sorted(pipeline.text(target.target) for target in field.draw(visit, rng, pipeline)[:-2]) == ["a", "b", "c"]
    counted.random(7)
    assert rng.random() == counted.random(), "the next field draws the same whatever an example holds"


def test_an_autoregressive_row_is_shifted_behind_pad() -> None:
    batch = packed(Target((5, 6), (7, 8, EOS)))
    assert batch["inputs"][0, :5].tolist() == [PAD, 5, 6, 7, 8]
    assert batch["targets"][0, :5].tolist() == [5, 6, 7, 8, EOS]
    assert batch["weights"][0].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0])
    assert batch["scored"].tolist() == [2, 3, 4]
    assert batch["segments"][0].tolist() == [0, 0, 0, 0, 0, -1, -1, -1]
    assert not batch["full"].any()


def test_a_parallel_row_is_unshifted_masked_and_of_full_length() -> None:
    batch = packed(Target((5, 6), (7, 8, EOS), parallel=True))
    assert batch["inputs"][0].tolist() == [5, 6] + [MASK] * 10 + [PAD] * 4
    assert batch["targets"][0, :5].tolist() == [5, 6, 7, 8, EOS]
    assert batch["scored"].tolist() == [2, 3, 4]
    assert batch["positions"][0, :12].tolist() == list(range(12))
    assert batch["full"][0].tolist() == [True] * 12 + [False] * 4
    assert batch["segments"][0].tolist() == [0] * 12 + [-1] * 4


def test_the_input_of_a_parallel_row_does_not_hang_on_its_labels_or_their_number() -> None:
    one, two = packed(Target((5, 6), (7, EOS), True)), packed(Target((5, 6), (9, 8, 3, 4, EOS), True))
    for field in ("inputs", "positions", "segments", "full"):
        assert torch.equal(one[field], two[field])
    assert not torch.equal(one["targets"], two["targets"])


def test_texts_of_an_image_share_a_row_and_weigh_one_each() -> None:
    row = [Target((5,), (7, 8, EOS), True), Target((6,), (9, EOS)), Target((), (3, 4, 5, 6, EOS))]
    batch = pack([row, [], row[1:2]], length=12, pad_id=PAD, mask_id=MASK)
    assert batch["inputs"].shape == (3, 24), "a multiple of eight, so that few widths occur"
    assert batch["sequences"].tolist() == [3, 0, 1]
    for number in range(3):
        assert batch["weights"][0][batch["segments"][0] == number].sum().item() == pytest.approx(1)
    assert batch["positions"][0, 12:20].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert (batch["segments"][1] == -1).all() and not batch["weights"][1].any()
    assert torch.equal(batch["scored"], batch["weights"].flatten().nonzero()[:, 0])
    assert batch["real"].tolist() == [*range(20), 48, 49, 50], "12 of the parallel row, 3 and 5; none; 3"


def test_a_batch_without_any_text_still_has_a_row() -> None:
    batch = pack([[], []], length=12, pad_id=PAD, mask_id=MASK)
    assert batch["inputs"].shape == (2, 8) and len(batch["scored"]) == 0 and batch["sequences"].sum() == 0


def test_collate_masks_with_the_row_behind_the_vocabulary(pipeline: TextPipeline) -> None:
    field = Captions(("cap",), parallel=1.0, boxes=BOXES)
    batch = field.collate([field.draw(a_visit(), np.random.default_rng(0), pipeline)], pipeline)
    assert batch["inputs"].max().item() == len(pipeline)
    assert batch["inputs"].shape[1] == pipeline.policy.length
