"""What several test files share: scenes, a pipeline for them, and recipes with networks of a few thousand weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opensiglip.data.example import Source
from opensiglip.data.fields import Visit
from opensiglip.data.sources import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.recipes import RECIPES, Recipe
from opensiglip.types import Batch

SIDE, LENGTH = 32, 48
SHAPE = Shape(width=32, depth=2, mlp=64, heads=2)

Small = Callable[..., Recipe]
Drawn = list[list[Any]]  # what a recipe's fields drew: one list per example


@pytest.fixture(scope="session")
def scenes() -> Source:
    """Scenes of at most three of forty drawings, in English, 32 pixels a side."""
    return open_source("scenes:drawings=40,objects=3", pixels=SIDE)


@pytest.fixture(scope="session")
def pipeline(scenes: Source) -> TextPipeline:
    """A byte-level tokenizer of 400 entries for the scenes."""
    texts = [text for text, _ in zip(scenes.texts(), range(400), strict=False)]
    return TextPipeline.train(texts, size=400, length=LENGTH)


@pytest.fixture(scope="session")
def small() -> Small:
    """A recipe by name with networks of `shape`; the captioner's encoder is then a random tower of ours, frozen."""

    def make(name: str, shape: Shape = SHAPE, **keywords: Any) -> Recipe:
        recipe = RECIPES[name](size="tiny", resolution=SIDE, length=LENGTH, **keywords)
        return replace(recipe, architecture=shrunk(recipe.architecture, shape))

    return make


def shrunk(networks: Architecture, shape: Shape) -> Architecture:
    """The same towers, each of that shape."""
    return replace(
        networks,
        vision=shape,
        text=shape if networks.text else None,
        decoder=replace(shape, depth=1) if networks.decoder else None,
        encoder=None,
    )


@pytest.fixture(scope="session")
def visits(scenes: Source) -> list[Visit]:
    """Sixteen scenes as a step sees them."""
    examples = [scenes.example(index, "en") for index in range(16)]
    return [Visit(example, example.image, example.regions, example.captions[0]) for example in examples]


@pytest.fixture(scope="session")
def uneven(visits: list[Visit]) -> list[Visit]:
    """Eight scenes: some without regions, one without a text, one with neither; most of it in the second half."""
    some = [replace(visit, regions=()) if place in (0, 1, 2, 6) else visit for place, visit in enumerate(visits[:8])]
    return [replace(visit, caption=None) if place in (2, 3) else visit for place, visit in enumerate(some)]


def draw(recipe: Recipe, visits: Sequence[Visit], pipeline: TextPipeline) -> Drawn:
    """Every random choice made, from one generator per visit."""
    generators = [np.random.default_rng([7, place]) for place in range(len(visits))]
    return [
        [field.draw(visit, rng, pipeline) for field in recipe.fields]
        for visit, rng in zip(visits, generators, strict=True)
    ]


def collate(recipe: Recipe, drawn: Drawn, pipeline: TextPipeline) -> Batch:
    """The batch of what was drawn, images as float in [-1, 1]; all that is floating in float64."""
    batch: Batch = {}
    for index, field in enumerate(recipe.fields):
        batch |= field.collate([row[index] for row in drawn], pipeline)
    batch["image"] = batch["image"].double() / 127.5 - 1
    return {name: field.double() if field.is_floating_point() else field for name, field in batch.items()}
