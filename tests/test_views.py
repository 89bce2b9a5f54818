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
from opensiglip.data.fields import views
from opensiglip.data.fields.field import SecondTexts, Visit
from opensiglip.data.fields.views import (
    FIRST_GLOBAL,
    LOCAL,
    OTHER_GLOBAL,
    PatchMask,
    Photometry,
    Views,
    augment,
    crop,
    local_side,
)
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
        assert area[0] - 0.06 <= spans[0] * spans[1] <= area[1] + 0.02


KINDS = (FIRST_GLOBAL, OTHER_GLOBAL, LOCAL)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_changes_the_picture_not_its_kind_and_draws_alike(kind: Photometry) -> None:
    image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kinds = Counter[bool]()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        seen = augment(image, kind, rng)
        assert seen.shape == image.shape and seen.dtype == torch.uint8
        kinds[torch.equal(seen, image)] += 1
        other = np.random.default_rng(seed)
        other.random(10)
        assert rng.random() == other.random(), "what follows must not hang on chance"
    assert kinds[False] > 30


# A picture that tells what was done to it: bright orange on the left, dark violet on the right.
SIDES = torch.zeros(3, 16, 16, dtype=torch.uint8)
SIDES[:, :, :8], SIDES[:, :, 8:] = (
    torch.tensor(c, dtype=torch.uint8)[:, None, None] for c in ((200, 120, 40), (60, 30, 90))
)
PLAIN = Photometry(0.0, 0.0, 96)


def test_half_of_the_views_are_flipped_a_fifth_grey_and_four_fifths_jittered() -> None:
    """Shares over 1,000 views, to three standard deviations."""
    counts = Counter[str]()
    for seed in range(1000):
        view = augment(SIDES, PLAIN, np.random.default_rng(seed)).float()
        left, right = view[:, 0, 0], view[:, 0, -1]
        flipped, grey = bool(left.sum() < right.sum()), bool((view == view[:1]).all())
        brighter = right if flipped else left
        counts.update(flipped=flipped, grey=grey, coloured=not grey)
        counts.update(jittered=not grey and (brighter - torch.tensor([200, 120, 40])).abs().max() > 1)
    assert abs(counts["flipped"] / 1000 - 0.5) < 0.048 and abs(counts["grey"] / 1000 - 0.2) < 0.038
    assert abs(counts["jittered"] / counts["coloured"] - 0.8) < 0.045


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        ("adjust_brightness", (0.6, 1.4)),
        ("adjust_contrast", (0.6, 1.4)),
        ("adjust_saturation", (0.8, 1.2)),
        ("adjust_hue", (-0.1, 0.1)),
    ],
)
def test_colours_are_jittered_as_far_as_dinov2_does(
    function: str, bounds: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    amounts: list[float] = []
    monkeypatch.setattr(views.transform, function, lambda image, amount: amounts.append(amount) or image)
    for seed in range(400):
        augment(SIDES, PLAIN, np.random.default_rng(seed))
    low, high = bounds
    assert low <= min(amounts) < low + 0.03 * (high - low) and high - 0.03 * (high - low) < max(amounts) <= high
    assert abs(np.mean(amounts) - (low + high) / 2) < 0.06 * (high - low)


@pytest.mark.parametrize(
    ("kind", "side", "blurred", "solarized", "kernel", "sigmas"),
    [
        (FIRST_GLOBAL, 224, 1.0, 0.0, 9, (0.1, 2.0)),
        (OTHER_GLOBAL, 224, 0.1, 0.2, 9, (0.1, 2.0)),
        (LOCAL, 96, 0.5, 0.0, 9, (0.1, 2.0)),
        (LOCAL, 192, 0.5, 0.0, 17, (0.2, 4.0)),
        (FIRST_GLOBAL, 56, 1.0, 0.0, 3, (0.025, 0.5)),
    ],
)
def test_blur_and_solarization_are_dinov2s_at_its_sizes_and_in_proportion_at_others(
    kind: Photometry,
    side: int,
    blurred: float,
    solarized: float,
    kernel: int,
    sigmas: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """recipes.md 6.3: p 1.0 (first), 0.1 with solarization 0.2 (second), 0.5 (local); kernel 9, sigma 0.1 to 2."""
    seen: list[tuple[list[int], list[float]]] = []
    turned: list[int] = []
    monkeypatch.setattr(
        views.transform, "gaussian_blur", lambda image, size, sigma: seen.append((size, sigma)) or image
    )
    monkeypatch.setattr(views.transform, "solarize", lambda image, start: turned.append(start) or image)
    for name in ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"):
        monkeypatch.setattr(views.transform, name, lambda image, amount: image)
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    for seed in range(600):
        augment(image, kind, np.random.default_rng(seed))
    assert abs(len(seen) / 600 - blurred) < 0.07 and abs(len(turned) / 600 - solarized) < 0.05
    assert all(size == [kernel, kernel] and sigma[0] == sigma[1] for size, sigma in seen)
    drawn, span = [sigma for _, (sigma, _) in seen], sigmas[1] - sigmas[0]
    assert sigmas[0] <= min(drawn) < sigmas[0] + 0.1 * span and sigmas[1] - 0.1 * span < max(drawn) <= sigmas[1]
    assert set(turned) <= {128}


def test_global_and_local_views_keep_the_papers_shares_of_the_area(
    pipeline: TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read off two ramps; SILC's 0.4 to 1 and 0.05 to 0.4, whose means are 0.7 and 0.225."""
    kinds: list[Photometry] = []
    monkeypatch.setattr(views, "augment", lambda image, kind, rng: kinds.append(kind) or image)
    across = torch.arange(256, dtype=torch.uint8).expand(256, 256)
    image = torch.stack([across, across.T, torch.zeros_like(across)])
    visit = Visit(Example(image, ()), image, (), None)
    field = Views(64, 8, wholes=2, locals=8)
    shares: dict[str, list[float]] = {"global": [], "local": []}
    for seed in range(60):
        batch = field.collate([field.draw(visit, np.random.default_rng(seed), pipeline)], pipeline)
        for name, found in shares.items():
            for view in batch[name][0].float():
                w, h = (float(view[axis].max() - view[axis].min()) / 255 for axis in (0, 1))
                found.append(w * h)
    assert kinds == [FIRST_GLOBAL, OTHER_GLOBAL, *[LOCAL] * 8] * 60
    for name, (low, high) in {"global": (0.4, 1.0), "local": (0.05, 0.4)}.items():
        found = shares[name]
        assert low - 0.05 < min(found) and max(found) < high + 0.02
        assert abs(np.mean(found) - (low + high) / 2) < 0.06


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 40), st.sampled_from([0.5, 0.75, 0.25]), st.integers(0, 2**32 - 1))
def test_exactly_the_share_of_patches_is_hidden_in_every_grid(side: int, ratio: float, seed: int) -> None:
    field = PatchMask(side * 16, 16, ratio=ratio)
    rng = np.random.default_rng(seed)
    hidden = np.stack([field.draw(None, rng, None) for _ in range(3)])  # type: ignore[arg-type]
    assert hidden.shape == (3, round(ratio * side * side))
    for row in hidden:
        assert len(set(row.tolist())) == len(row) and row.min() >= 0 and row.max() < side * side


def test_every_patch_is_as_likely_to_be_hidden() -> None:
    field, rng = PatchMask(64, 16, ratio=0.5), np.random.default_rng(0)
    counts = np.bincount(np.concatenate([field.draw(None, rng, None) for _ in range(4000)]), minlength=16)  # type: ignore[arg-type]
    assert abs(counts / 4000 - 0.5).max() < 0.04


def test_views_are_not_made_before_they_are_needed(small: Small, scenes: Source, pipeline: TextPipeline) -> None:
    recipe = small("siglip2")
    plan = DataPlan(
        sources=[scenes], frame=recipe.frame, fields=recipe.fields, pipeline=pipeline, batch_size=4, seed=0, steps=10
    )
    early, late = (set(Steps(plan)[step].parts[0]) for step in (7, 8))
    assert late - early == {"global", "local", "mask_indices"} and not early - late
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
