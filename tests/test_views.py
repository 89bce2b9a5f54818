"""Views for self-distillation: crops of the right size and share, patches hidden in exact number, nothing too early."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Small
from hypothesis import given, settings
from hypothesis import strategies as st

from opensiglip.data.example import Caption, Example, Source
from opensiglip.data.fields.field import SecondTexts, Visit
from opensiglip.data.fields.views import Hidden, Views, augment, crop, local_side
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.text import TextPipeline


@pytest.mark.parametrize(
    ("resolution", "patch", "side"), [(256, 16, 96), (224, 14, 84), (512, 16, 192), (64, 8, 24), (32, 8, 16)]
)
def test_local_crops_are_three_eighths_in_whole_patches_and_at_least_two(
    resolution: int, patch: int, side: int
) -> None:
    assert local_side(resolution, patch) == side


def test_views_have_their_sizes_and_come_from_the_original_image(visits: list[Visit], pipeline: TextPipeline) -> None:
    field = Views(64, 8, wholes=2, locals=6)
    large = [replace(v, image=torch.zeros(3, 8, 8, dtype=torch.uint8)) for v in visits[:3]]  # what is not to be used
    drawn = [field.draw(visit, np.random.default_rng(0), pipeline) for visit in large]
    batch = field.collate(drawn, pipeline)
    assert batch["global"].shape == (3, 2, 3, 64, 64) and batch["local"].shape == (3, 6, 3, 24, 24)
    assert batch["global"].dtype == batch["local"].dtype == torch.uint8
    assert batch["global"].float().std() > 10
    again = [field.draw(visit, np.random.default_rng(0), pipeline) for visit in large]
    assert all(torch.equal(a, b) for one, two in zip(drawn, again, strict=True) for a, b in zip(one, two, strict=True))


@settings(deadline=None)
@given(st.integers(4, 300), st.integers(4, 300), st.sampled_from([(0.4, 1.0), (0.05, 0.4)]), st.integers(0, 2**32 - 1))
def test_a_crop_keeps_its_share_of_the_area(height: int, width: int, area: tuple[float, float], seed: int) -> None:
    """Read off two ramps, which a crop turns into where it was cut."""
    image = torch.stack(
        [
            torch.linspace(0, 1, width).expand(height, width),
            torch.linspace(0, 1, height)[:, None].expand(height, width),
            torch.zeros(height, width),
        ]
    )
    part = crop(image, 32, area, np.random.default_rng(seed))
    assert part.shape == (3, 32, 32)
    spans = [float(part[axis].max() - part[axis].min()) for axis in (0, 1)]
    assert all(-1e-6 <= span <= 1 + 1e-6 for span in spans)
    if min(height, width) >= 100:
        assert spans[0] * spans[1] <= area[1] + 0.02
        assert spans[0] > 0.5 * area[0] and spans[1] > 0.5 * area[0]


def test_augmentation_changes_the_picture_not_its_kind_and_draws_alike() -> None:
    image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)
    kinds = Counter[bool]()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        seen = augment(image, rng)
        assert seen.shape == image.shape and seen.dtype == torch.uint8
        kinds[torch.equal(seen, image)] += 1
        other = np.random.default_rng(seed)
        other.random(9)
        assert rng.random() == other.random(), "what follows must not hang on chance"
    assert kinds[False] > 30


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 40), st.sampled_from([0.5, 0.75, 0.25]), st.integers(0, 2**32 - 1))
def test_exactly_the_share_of_patches_is_hidden_in_every_grid(side: int, ratio: float, seed: int) -> None:
    field = Hidden(side * 16, 16, ratio=ratio)
    rng = np.random.default_rng(seed)
    hidden = np.stack([field.draw(None, rng, None) for _ in range(3)])  # type: ignore[arg-type]
    assert hidden.shape == (3, round(ratio * side * side))
    for row in hidden:
        assert len(set(row.tolist())) == len(row) and row.min() >= 0 and row.max() < side * side


def test_every_patch_is_as_likely_to_be_hidden() -> None:
    field, rng = Hidden(64, 16, ratio=0.5), np.random.default_rng(0)
    counts = np.bincount(np.concatenate([field.draw(None, rng, None) for _ in range(4000)]), minlength=16)  # type: ignore[arg-type]
    assert abs(counts / 4000 - 0.5).max() < 0.04


def test_views_are_not_made_before_they_are_needed(small: Small, scenes: Source, pipeline: TextPipeline) -> None:
    recipe = small("siglip2")
    plan = DataPlan(
        sources=[scenes], frame=recipe.frame, fields=recipe.fields, pipeline=pipeline, batch_size=4, seed=0, steps=10
    )
    early, late = (set(Steps(plan)[step].parts[0]) for step in (7, 8))
    assert late - early == {"global", "local", "hidden"} and not early - late
    first, without = Steps(plan)[8].parts[0], replace(plan, fields=recipe.fields[:3])
    same = Steps(without)[8].parts[0]
    assert all(torch.equal(first[name], same[name]) for name in same), "views change nothing of the rest"


def test_the_second_text_is_synthetic_else_another_caption_else_the_same(pipeline: TextPipeline) -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)

    def second(captions: list[str], synthetic: list[str]) -> set[str]:
        said = tuple(Caption(text) for text in captions)
        extras = {"captions_synthetic": tuple(Caption(text, "en", "synthetic") for text in synthetic)}
        visit = Visit(Example(image, said, extras=extras), image, (), said[0] if said else None)
        drawn = [SecondTexts().draw(visit, np.random.default_rng(seed), pipeline) for seed in range(20)]
        assert all(has == bool(captions or synthetic) for _, has in drawn)
        return {pipeline.text(ids.tolist()) for ids, _ in drawn}

    assert second(["a fox", "a red fox"], ["an animal", "a beast"]) == {"an animal", "a beast"}
    assert second(["a fox", "a red fox", "one fox"], []) == {"a red fox", "one fox"}
    assert second(["a fox"], []) == {"a fox"}
    assert second([], []) == {""}
