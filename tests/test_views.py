"""Views for self-distillation: crops of the right size and share, patches hidden in exact number, nothing too early."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Small
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as transform

from opensiglip.data.example import Caption, Example, Source
from opensiglip.data.fields import photometry, views
from opensiglip.data.fields.field import SecondTexts, Visit
from opensiglip.data.fields.photometry import (
    DRAWS,
    FIRST_GLOBAL,
    LOCAL,
    OTHER_GLOBAL,
    Photometry,
    augment,
    gaussian_blur,
    without_colour,
)
from opensiglip.data.fields.views import PatchMask, Views, crop, local_side
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
CENTRE = 0.5  # a draw that neither changes a colour nor, with `PLAIN`, does anything else


def chances(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, DRAWS))


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_changes_the_picture_not_its_kind_and_no_view_hangs_on_others(kind: Photometry) -> None:
    image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    many, draws = image.expand(40, -1, -1, -1), chances(40)
    seen = augment(many, [kind] * 40, draws)
    assert seen.shape == many.shape and seen.dtype == torch.uint8
    assert sum(torch.equal(view, image) for view in seen) < 10
    for place in range(40):
        alone = augment(image[None], [kind], draws[place : place + 1])[0]
        assert (alone.int() - seen[place].int()).abs().max() <= 1  # a float32 sum that is rounded to uint8
    assert torch.equal(many[0], image), "what it is given stays as it is"


def test_draws_that_change_nothing_leave_every_value() -> None:
    image = torch.arange(256, dtype=torch.uint8).expand(3, 16, 256)[None]
    draws = np.full((1, DRAWS), CENTRE)
    draws[:, 1] = 0.0  # jittered, by nothing
    assert torch.equal(augment(image, [PLAIN], draws), image)


@pytest.mark.parametrize("function", ["adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"])
def test_colours_are_torchvisions_to_1e_6(function: str) -> None:
    views = torch.rand(6, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    views[0, 1:] = views[0, :1]  # grey, black and white, of few colours, with equal channels
    views[1], views[2], views[3] = 0.0, 1.0, views[3].round()
    views[4, 1] = views[4, 0]
    amounts = [0.1, -0.1, 0.05, -0.03, 0.02, 0.0] if function == "adjust_hue" else [0.6, 1.4, 1.0, 0.8, 1.2, 1.3]
    ours = getattr(photometry, function)(views.clone(), torch.tensor(amounts).view(-1, 1, 1, 1))
    for view, got, amount in zip(views, ours, amounts, strict=True):
        torch.testing.assert_close(got, getattr(transform, function)(view, amount), atol=1e-6, rtol=0)


@pytest.mark.parametrize("reach", [1, 4, 8])
def test_grey_and_blur_are_torchvisions_to_1e_6(reach: int) -> None:
    views = torch.rand(3, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    grey = transform.rgb_to_grayscale(views, num_output_channels=3)
    torch.testing.assert_close(without_colour(views), grey, atol=1e-6, rtol=0)
    sigmas = [0.1, 0.9, 4.0]
    ours = gaussian_blur(views, reach, torch.tensor(sigmas).view(-1, 1, 1, 1))
    for view, got, sigma in zip(views, ours, sigmas, strict=True):
        kernel = [2 * reach + 1] * 2
        torch.testing.assert_close(got, transform.gaussian_blur(view, kernel, [sigma] * 2), atol=1e-6, rtol=0)


# A picture that tells what was done to it: bright orange on the left, dark violet on the right.
SIDES = torch.zeros(3, 16, 16, dtype=torch.uint8)
SIDES[:, :, :8], SIDES[:, :, 8:] = (
    torch.tensor(c, dtype=torch.uint8)[:, None, None] for c in ((200, 120, 40), (60, 30, 90))
)
PLAIN = Photometry(0.0, 0.0, 96)


def test_half_of_the_views_are_flipped_a_fifth_grey_and_four_fifths_jittered() -> None:
    """Shares over 1,000 views, to three standard deviations."""
    counts = Counter[str]()
    for view in augment(SIDES.expand(1000, -1, -1, -1), [PLAIN] * 1000, chances(1000)).float():
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
    monkeypatch.setattr(photometry, function, lambda x, amount: amounts.extend(amount.flatten().tolist()) or x)
    augment(SIDES.expand(400, -1, -1, -1), [PLAIN] * 400, chances(400))
    low, high = bounds
    assert low <= min(amounts) < low + 0.03 * (high - low) and high - 0.03 * (high - low) < max(amounts) <= high
    assert abs(np.mean(amounts) - (low + high) / 2) < 0.06 * (high - low)


def test_a_view_is_changed_in_dinov2s_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours as ColorJitter names them, then grey, blur and solarization, of which no two can be exchanged."""
    steps = [f"adjust_{name}" for name in ("brightness", "contrast", "saturation", "hue")]
    steps = ["flipped", *steps, "without_colour", "gaussian_blur", "solarized"]
    said: list[str] = []
    for name in steps:
        monkeypatch.setattr(photometry, name, lambda x, *given, name=name: said.append(name) or x)
    augment(SIDES[None], [Photometry(1.0, 1.0, 96)], np.zeros((1, DRAWS)))
    assert said == steps


@pytest.mark.parametrize(
    ("kind", "side", "blurred_share", "solarized", "reach", "sigmas"),
    [
        (FIRST_GLOBAL, 224, 1.0, 0.0, 4, (0.1, 2.0)),
        (OTHER_GLOBAL, 224, 0.1, 0.2, 4, (0.1, 2.0)),
        (LOCAL, 96, 0.5, 0.0, 4, (0.1, 2.0)),
        (LOCAL, 192, 0.5, 0.0, 8, (0.2, 4.0)),
        (FIRST_GLOBAL, 56, 1.0, 0.0, 1, (0.025, 0.5)),
    ],
)
def test_blur_and_solarization_are_dinov2s_at_its_sizes_and_in_proportion_at_others(
    kind: Photometry,
    side: int,
    blurred_share: float,
    solarized: float,
    reach: int,
    sigmas: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """recipes.md 6.3: p 1.0 (first), 0.1 with solarization 0.2 (second), 0.5 (local); kernel 9, sigma 0.1 to 2."""
    seen: list[tuple[int, list[float]]] = []
    monkeypatch.setattr(
        photometry, "gaussian_blur", lambda x, reach, sigma: seen.append((reach, sigma.flatten().tolist())) or x
    )
    draws = chances(600)
    draws[:, :3] = 0.99  # neither flipped nor jittered nor grey
    image = torch.full((600, 3, 2, side), 200, dtype=torch.uint8)
    turned = (augment(image, [kind] * 600, draws) == 55).all(1).all(1).all(1)
    [(reached, drawn)] = seen
    assert abs(len(drawn) / 600 - blurred_share) < 0.07 and abs(turned.float().mean() - solarized) < 0.05
    assert reached == reach
    span = sigmas[1] - sigmas[0]
    low, high = pytest.approx(sigmas[0], rel=1e-5), pytest.approx(sigmas[1], rel=1e-5)
    assert (sigmas[0] < min(drawn) or min(drawn) == low) and min(drawn) < sigmas[0] + 0.1 * span
    assert (max(drawn) < sigmas[1] or max(drawn) == high) and max(drawn) > sigmas[1] - 0.1 * span


def test_values_from_128_on_are_turned_round() -> None:
    draws, kind = np.full((1, DRAWS), 0.99), Photometry(0.0, 1.0, 96)
    values = torch.arange(256, dtype=torch.uint8)
    turned = augment(values.expand(1, 3, 2, 256), [kind], draws)[0, 0, 0]
    assert torch.equal(turned, transform.solarize(values.expand(3, 2, 256), 128)[0, 0])


def test_global_and_local_views_keep_the_papers_shares_of_the_area(
    pipeline: TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read off two ramps; SILC's 0.4 to 1 and 0.05 to 0.4, whose means are 0.7 and 0.225."""
    kinds: list[Photometry] = []
    monkeypatch.setattr(views, "augment", lambda images, some, draws: kinds.extend(some) or images)
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
        assert (np.diff(row) > 0).all() and row.min() >= 0 and row.max() < side * side


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
