"""Frames, and the batches of a run: boxes follow their pixels, and a step's batch is the same however it is made."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as transform
from toys import Rectangles, rectangle

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.fields.captions import Captions
from opensiglip.data.fields.field import Field, Images, Texts, Visit, draw_caption
from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import BrokenLimit, DataPlan, StepBatch, Steps, loader, to_device
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError

FRAME = Frame(32, 0.5)
FIELDS: tuple[Field, ...] = (Images(FRAME), Texts(), Captions(("cap", "aref", "gcap"), parallel=0.5, boxes=BoxFormat()))


def plan(
    pipeline: TextPipeline, sources: Sequence[Rectangles] = (Rectangles(11), Rectangles(6)), **changes: Any
) -> DataPlan:
    given = {"fields": FIELDS, "batch_size": 8, "seed": 3} | changes
    return DataPlan(sources=sources, frame=FRAME, pipeline=pipeline, **given)


def seen(box: tuple[int, int, int, int], frame: Frame, seed: int | None) -> tuple[Tensor, tuple[Region, ...]]:
    example = Example(rectangle(box, 120, 90), (), (Region(box, {"en": "it"}),))
    return frame.apply(example, None if seed is None else np.random.default_rng(seed))


def bounds(image: Tensor) -> tuple[int, int, int, int]:
    """Around what is more red than not."""
    rows, columns = (image[0] > 127).nonzero(as_tuple=True)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(0, 80),
    st.integers(0, 60),
    st.integers(20, 40),
    st.integers(20, 30),
    st.booleans(),
)
def test_a_drawn_rectangle_ends_up_where_its_box_says(
    seed: int, x: int, y: int, width: int, height: int, cropped: bool
) -> None:
    image, regions = seen((x, y, x + width, y + height), Frame(64, 0.4 if cropped else 1.0), seed)
    assert image.shape == (3, 64, 64)
    if not regions:
        assert cropped
        return
    for place, said in zip(bounds(image), regions[0].bbox, strict=True):
        assert abs(place - said) <= 1


def crop(seed: int, area: float) -> tuple[int, int, int, int]:
    """top, left, height, width of what a frame cuts out of an image of 120 by 90."""
    return Frame(64, area).window(torch.empty(3, 90, 120), np.random.default_rng(seed))


def test_a_region_that_is_mostly_cut_away_is_dropped() -> None:
    kept = Counter[bool]()
    for seed in range(150):
        _, regions = seen((0, 0, 40, 30), Frame(64, 0.1), seed)
        top, left, _, _ = crop(seed, 0.1)
        assert bool(regions) == (max(0, 40 - left) * max(0, 30 - top) >= 0.5 * 40 * 30)
        kept[bool(regions)] += 1
        for region in regions:
            assert 0 <= region.bbox[0] < region.bbox[2] <= 64 and 0 <= region.bbox[1] < region.bbox[3] <= 64
    assert min(kept.values()) > 30


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10**6), st.floats(0.05, 0.99), st.integers(1, 400), st.integers(1, 400))
def test_a_crop_lies_inside_and_keeps_at_least_its_share_of_the_area(
    seed: int, area: float, height: int, width: int
) -> None:
    top, left, h, w = Frame(64, area).window(torch.empty(3, height, width), np.random.default_rng(seed))
    assert 0 <= top <= height - h and 0 <= left <= width - w
    assert h * w >= area * height * width * (1 - 1e-9), "of a panorama too"


def test_a_crop_is_no_more_stretched_than_its_image_asks() -> None:
    """3:4 to 4:3 where so much of the image fits; of an image of 3:1 that keeps half, 1.5:1 at least."""
    square = [Frame(64, 0.3).window(torch.empty(3, 200, 200), np.random.default_rng(seed)) for seed in range(200)]
    ratios = [w / h for _, _, h, w in square if h < 200 and w < 200]
    assert 0.74 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.35
    wide = [Frame(64, 0.5).window(torch.empty(3, 100, 300), np.random.default_rng(seed)) for seed in range(200)]
    shares = [h * w / 30_000 for _, _, h, w in wide]
    assert all(h == 100 for _, _, h, _ in wide) and 0.5 <= min(shares) < 0.52 and 0.98 < max(shares) <= 1


def test_without_crop_area_or_generator_nothing_is_cropped() -> None:
    for frame, seed in ((Frame(64), 1), (Frame(64, 0.3), None)):
        image, regions = seen((0, 0, 120, 90), frame, seed)
        assert (image[0] > 250).all() and regions[0].bbox == (0, 0, 64, 64)
    same = rectangle((3, 4, 9, 8), 64, 64)
    assert Frame(64).apply(Example(same, ()), np.random.default_rng(0))[0] is same


def test_images_made_smaller_are_antialiased_which_big_visions_default_is_not() -> None:
    """Stripes of one pixel, 4 to 1: the mean grey; without antialiasing what happens to lie under the sample points."""
    stripes = (torch.arange(128) % 4 == 0).to(torch.uint8).mul(255).expand(3, 128, 128).contiguous()
    ours, _ = Frame(32).apply(Example(stripes, ()), None)
    plain = transform.resize(stripes, [32, 32], antialias=False)
    assert (ours[..., 2:-2].float() - 255 / 4).abs().max() < 12 and plain.float().mean() < 1
    small = stripes[:, :16, :16].contiguous()
    enlarged, _ = Frame(32).apply(Example(small, ()), None)
    assert torch.equal(enlarged, transform.resize(small, [32, 32], antialias=False)), "nothing to average"


def test_a_visit_prefers_the_language_that_was_drawn() -> None:
    example = Rectangles(1).example(0)
    said = {Visit.draw(example, Frame(32), np.random.default_rng(seed), "de").caption for seed in range(9)}
    assert said == {example.captions[1]}
    other = {Visit.draw(example, Frame(32), np.random.default_rng(seed), "fr").caption for seed in range(30)}
    assert other == set(example.captions)


@pytest.mark.parametrize("whole", [0.1, 1.0, 40.0])
def test_a_caption_is_drawn_as_often_as_its_weight_says_whatever_their_sum(whole: float) -> None:
    captions = [Caption(str(share), "en", weight=share * whole) for share in (0.1, 0.2, 0.7)]
    rng = np.random.default_rng(0)
    counts = Counter(draw_caption(captions, rng).text for _ in range(4000))
    assert all(counts[str(share)] / 4000 == pytest.approx(share, abs=0.025) for share in (0.1, 0.2, 0.7))


def test_an_example_without_a_text_says_so(pipeline: TextPipeline) -> None:
    image = rectangle((0, 0, 5, 5), 32, 32)
    visits = [Visit(Example(image, ()), image, (), caption) for caption in (None, Caption("a"))]
    batch = Texts().collate([Texts().draw(v, np.random.default_rng(0), pipeline) for v in visits], pipeline)
    assert batch["has_text"].tolist() == [False, True] and "group" not in batch, "of which nothing is known"
    assert batch["text"].shape == (2, pipeline.policy.length)


def joined(parts: Sequence[StepBatch]) -> list[dict[str, Tensor]]:
    """Each example's fields: rows of the decoder without what is padded only to a batch's common width."""
    rows = []
    for part in (part for batch in parts for part in batch.parts):
        for index in range(len(part["image"])):
            live = int((part["segments"][index] >= 0).sum())
            wide = {"inputs", "targets", "positions", "segments", "weights", "full"}
            rows.append(
                {
                    name: field[index, :live] if name in wide else field[index]
                    for name, field in part.items()
                    if name not in ("scored", "real")
                }
            )
    return rows


def assert_equal(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs, strict=True):
        assert x.keys() == y.keys()
        assert all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_steps_batch_is_the_same_on_any_ranks_and_in_any_parts(step: int, pipeline: TextPipeline) -> None:
    whole = joined([Steps(plan(pipeline))[step]])
    assert len(whole) == 8 and len({row["image"].numpy().tobytes() for row in whole}) > 4
    assert_equal(whole, joined([Steps(plan(pipeline, rank=rank, ranks=2))[step] for rank in range(2)]))
    in_parts = Steps(plan(pipeline, parts=4))[step]
    assert len(in_parts.parts) == 4
    assert_equal(whole, joined([in_parts]))
    assert_equal(whole, joined([Steps(plan(pipeline, rank=rank, ranks=2, parts=2))[step] for rank in range(2)]))


def test_batches_do_not_hang_on_workers_nor_on_where_a_run_starts(pipeline: TextPipeline) -> None:
    alone = [joined([batch]) for batch in loader(plan(pipeline), 0, 6, workers=0, pin=False)]
    for ours, theirs in zip(alone, loader(plan(pipeline), 0, 6, workers=2, pin=False), strict=True):
        assert_equal(ours, joined([theirs]))
    for ours, theirs in zip(alone[4:], loader(plan(pipeline), 4, 6, workers=0, pin=False), strict=True):
        assert_equal(ours, joined([theirs]))


def test_another_seed_or_step_is_another_batch(pipeline: TextPipeline) -> None:
    batches = [Steps(plan(pipeline, seed=seed))[step].parts[0]["image"] for seed, step in ((3, 0), (3, 1), (4, 0))]
    assert not any(torch.equal(batches[i], batches[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_an_epoch_visits_every_example_of_every_source_once(pipeline: TextPipeline) -> None:
    steps = Steps(plan(pipeline, sources=(Rectangles(11, name="a"), Rectangles(6, name="b"))))
    names = [steps.visit(position, Counter(), Frame(32)).example.name for position in range(34)]
    everything = sorted([f"a/{i}" for i in range(11)] + [f"b/{i}" for i in range(6)])
    assert sorted(names[:17]) == sorted(names[17:]) == everything
    assert names[:17] != names[17:]


def test_the_same_image_twice_in_a_batch_is_of_one_group(pipeline: TextPipeline) -> None:
    steps = Steps(plan(pipeline, sources=(Rectangles(3, name="a"), Rectangles(2, name="b")), batch_size=12))
    images = [steps.visit(position, Counter(), FRAME) for position in range(12)]
    names = [visit.example.name for visit in images]
    groups = torch.cat(
        [
            Steps(replace(steps.plan, rank=rank, ranks=2, parts=3))[0].parts[part]["group"]
            for rank in range(2)
            for part in range(3)
        ]
    )
    assert groups.dtype == torch.int64
    same = torch.tensor([[x == y for y in names] for x in names])
    assert torch.equal(groups[:, None] == groups, same) and int(same.sum()) == 30
    assert steps.negatives(0) == 12 - 30 / 12


def test_a_broken_examples_place_is_taken_and_the_reason_counted(pipeline: TextPipeline) -> None:
    source = Rectangles(10, broken=frozenset({4, 5}))
    steps = Steps(plan(pipeline, sources=(source,), batch_size=10))
    batch = steps[0]
    assert batch.skipped == Counter({"truncated image": 3}), "4, and 5 in its place; 5 itself"
    assert len(batch.parts[0]["image"]) == 10
    names = sorted(steps.visit(position, Counter(), Frame(32)).example.name for position in range(10))
    assert names == sorted(f"rectangles/{i}" for i in (0, 1, 2, 3, 6, 6, 6, 7, 8, 9))


class Failing(Images):
    """The plain view, of which some raise what no one foresaw."""

    def __init__(self, error: Exception, every: int) -> None:
        super().__init__(FRAME)
        self.error, self.every = error, every

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Tensor:
        rng.random()  # what is drawn before must not shift the next example's
        if int(visit.example.name.split("/")[1]) % self.every == 0:
            raise self.error
        return super().draw(visit, rng, pipeline)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("y"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "z")])
def test_whatever_goes_wrong_with_a_row_is_that_rows_and_counted(error: Exception, pipeline: TextPipeline) -> None:
    fields = (Failing(error, 5), Texts())
    batch = Steps(plan(pipeline, sources=(Rectangles(10),), batch_size=10, fields=fields))[0]
    ((reason, count),) = batch.skipped.items()
    assert reason.startswith(f"{type(error).__name__} in test_fields.py:") and count == 2
    whole = Steps(plan(pipeline, sources=(Rectangles(10),), batch_size=10, fields=(Failing(error, 99), Texts())))
    kept = {int(group): row for group, row in zip(batch.parts[0]["group"], batch.parts[0]["image"], strict=True)}
    same = [
        torch.equal(kept[int(group)], row)
        for group, row in zip(*(whole[0].parts[0][n] for n in ("group", "image")), strict=True)
        if int(group) in kept
    ]
    assert len(kept) == 8 and sum(same) >= 6, "an example is drawn as it is without the failing ones"


@pytest.mark.parametrize("error", [UserError("--tasks: no such task"), MemoryError()])
def test_what_is_the_runs_own_fault_ends_it(error: Exception, pipeline: TextPipeline) -> None:
    with pytest.raises(type(error)):
        Steps(plan(pipeline, sources=(Rectangles(10),), batch_size=10, fields=(Failing(error, 5),)))[0]


def test_a_source_of_which_nothing_can_be_read_stops_the_run(pipeline: TextPipeline) -> None:
    source = Rectangles(4, broken=frozenset(range(4)), name="ruins")
    with pytest.raises(UserError, match="no example of --data ruins"):
        Steps(plan(pipeline, sources=(source,)))[0]


def test_a_tenth_of_broken_examples_is_borne_and_more_stops_the_run() -> None:
    judge = BrokenLimit()
    judge.count(9, Counter({"truncated image": 40}))  # too few read to say
    borne = BrokenLimit()
    for _ in range(20):
        borne.count(90, Counter({"truncated image": 10}))
    assert borne.read == 1800 and borne.skipped == {"truncated image": 200}, "of all steps"
    with pytest.raises(
        UserError, match=r"11 of 100 examples read are broken \(8 x truncated image, 3 x not an image\)"
    ):
        BrokenLimit().count(89, Counter({"truncated image": 8, "not an image": 3}))


def test_pixels_become_floats_from_minus_one_to_one_and_nothing_else_changes() -> None:
    batch = {"image": torch.tensor([0, 127, 128, 255], dtype=torch.uint8), "text": torch.tensor([255])}
    moved = to_device(batch, torch.device("cpu"))
    torch.testing.assert_close(moved["image"], torch.tensor([-1, -1 / 255, 1 / 255, 1]))
    assert moved["text"].tolist() == [255] and moved["text"].dtype == torch.int64
