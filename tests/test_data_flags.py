"""What a recipe is told about its data reaches the batch: `crop_area` its pixels, `boxes` its texts."""

import inspect
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Small

from opensiglip.data.example import Caption, Example, Region, Source
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.text import TextPipeline
from opensiglip.recipes import RECIPES, Recipe
from opensiglip.types import Batch, Patches


def taking(keyword: str) -> list[str]:
    """The recipes that have a keyword."""
    found = [name for name, function in RECIPES.items() if keyword in inspect.signature(function).parameters]
    assert len(found) >= 5
    return found


class Ramps(Source):
    """One image: red grows from left to right, green from top to bottom, so pixels tell where they were cut."""

    name, languages, skipped = "ramps", ("en",), Counter[str]()

    def __len__(self) -> int:
        return 40

    def example(self, index: int, language: str | None = None) -> Example:
        across = torch.arange(256, dtype=torch.uint8).expand(256, 256)
        image = torch.stack([across, across.T, torch.zeros_like(across)])
        region = Region((64.0, 0.0, 128.0, 256.0), {"en": "the stripe"})
        return Example(image, (Caption("two ramps"),), (region,), f"ramps/{index}")

    def texts(self) -> Any:
        return iter(["two ramps", "the stripe"])

    def describe(self) -> dict[str, Any]:
        return {}


def batch_of(recipe: Recipe, pipeline: TextPipeline) -> Batch:
    plan = DataPlan(
        sources=[Ramps()], frame=recipe.frame, fields=recipe.fields, pipeline=pipeline, batch_size=32, seed=0, steps=10
    )
    return Steps(plan)[0].parts[0]


def spans(batch: Batch) -> list[float]:
    """What share of the image's area each plain view of a batch shows."""
    found = []
    for number in range(len(batch["image"])):
        if "image_shapes" in batch:
            patches = Patches.of(batch, "image")
            view = patches.values[number][patches.valid[number]].unflatten(-1, (-1, 3)).flatten(0, 1).T.float()
        else:
            view = batch["image"][number].flatten(1).float()
        w, h = (float(view[axis].max() - view[axis].min()) / 255 for axis in (0, 1))
        found.append(w * h)
    return found


@pytest.mark.parametrize("name", taking("crop_area"))
def test_a_recipes_crop_area_reaches_the_batch(name: str, small: Small, pipeline: TextPipeline) -> None:
    whole = spans(batch_of(small(name), pipeline))
    assert min(whole) > 0.9, "by default no recipe crops"
    shares = spans(batch_of(small(name, crop_area=0.3), pipeline))
    assert 0.2 < min(shares) < 0.5 and np.mean(shares) < 0.75, "0.3 to 1, of which views of few pixels lose an edge"


WRITTEN = {  # of x 64 to 128, y 0 to 256 of 256, by hand
    "y1 x1 y2 x2": "0 125 500 250",
    "x1,y1,x2,y2:1000": "250,0,500,1000",
    "loc": "<loc0000><loc0256><loc1023><loc0512>",
}


@pytest.mark.parametrize("boxes", WRITTEN)
@pytest.mark.parametrize("name", taking("boxes"))
def test_a_recipes_box_format_reaches_the_batch(name: str, boxes: str, small: Small) -> None:
    keywords: dict[str, Any] = {"tasks": "aref"} if name in ("tasks", "pali") else {}
    recipe = small(name, boxes=boxes, **keywords)
    texts = ["ARef: the stripe : 0 125 500 250", "GCap:", "Cap: two ramps", *map(str, range(1001))]
    pipeline = TextPipeline.train(texts * 3, size=1500, length=64).with_tokens(recipe.boxes.tokens())
    batch = batch_of(recipe, pipeline)
    rows = batch["targets"] if "targets" in batch else batch["answers"]
    text = " ".join(pipeline.text([int(i) for i in row if i != pipeline.policy.eos_id]) for row in rows)
    written = "".join(text.split())
    assert "".join(WRITTEN[boxes].split()) in written
    assert not any("".join(other.split()) in written for key, other in WRITTEN.items() if key != boxes)
