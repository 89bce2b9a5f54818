"""What several test files share: scenes, a pipeline for them, and recipes with networks of a few thousand weights."""

import gc
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deadline import deadline
from hypothesis import settings
from once import CURVE, once
from PIL import Image

from opensiglip.data.example import Source
from opensiglip.data.fields.field import Visit
from opensiglip.data.loader import to_device
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.models.sizes import SHAPES, Shape
from opensiglip.recipes import RECIPES, Recipe, find_recipe
from opensiglip.recipes.kept_tokens import drop_tokens
from opensiglip.reports import run_page
from opensiglip.training.run import train
from opensiglip.types import Batch

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("ci" if "CI" in os.environ else "patient")  # Hypothesis' own "ci" is derandomised

SECONDS = 400  # that a test may take on a busy machine; none waits longer for anything
LONGEST = (
    "test_learning",
    "test_study",
    "test_shard",
    "test_distillation",
    "test_launch",
    "test_compile",
    "test_train",
)
SIDE, LENGTH = 32, 48
SHAPE = Shape(width=32, depth=2, mlp=64, heads=2)

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
RECIPE = """
from dataclasses import replace
from typing import Annotated

from opensiglip.bounds import Bounds
from opensiglip.models.ema import Momentum
from opensiglip.models.sizes import HeadShape
from opensiglip.models.sizes import Shape
from opensiglip.objectives.distillation import LocalToGlobal, MaskedPatches
from opensiglip.recipes import siglip2


def small(*, resolution: int = 32, parallel: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.5,
          logit_bias: str = "-10", decoder_bias: bool = False, distill_start: float = 0.8, momentum: float = 0.966):
    '''SigLIP 2, small.

    Args:
        resolution: pixels of a side.
        parallel: fraction of the captions predicted in parallel.
        logit_bias: where the bias of the sigmoid starts.
        decoder_bias: biases in the decoder's blocks.
        distill_start: share of training after which distillation begins.
        momentum: of the teacher.
    '''
    recipe = siglip2(size="tiny", resolution=resolution, parallel=parallel, logit_bias=logit_bias,
                     distill_start=distill_start)
    shape = Shape(width=32, depth=2, mlp=64, heads=2)
    networks = replace(recipe.architecture, vision=shape, text=shape, decoder=replace(shape, depth=1))
    taught = [
        LocalToGlobal(32, HeadShape(32, 16, 48), weight=0.25, start=distill_start, momentum=Momentum(momentum)),
        MaskedPatches(32, HeadShape(32, 16, 48), weight=0.0625, start=distill_start, momentum=Momentum(momentum)),
    ]
    networks = replace(networks, decoder_bias=decoder_bias)
    return replace(recipe, architecture=networks, objectives=[*recipe.objectives[:2], *taught])
"""

# A folder of tests may bring a recipe, FOLDER/recipe.py with a function of the folder's name: it is then a recipe like
# the others, for every test over recipes.
for _file in sorted(Path(__file__).parent.glob("*/recipe.py")):
    RECIPES[_file.parent.name] = find_recipe(f"{_file}:{_file.parent.name}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture-count", type=int, help="cases of each test in tests/torture; by default a few")


def pytest_configure(config: pytest.Config) -> None:
    """Files go to the processes of `-n auto` in the order below, not by their number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin: at the end, one would be waited for while the other cores have nothing."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """What is imported stays: no collection of garbage looks at it again, and accelerate asks for two in every run."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def shared_work() -> Iterator[None]:
    """Toy runs share what they would make alike."""
    with once():
        yield


@pytest.fixture
def every_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each curve of a report is drawn, for tests that look at them."""
    monkeypatch.setattr(run_page, "curve", CURVE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Every wait has a deadline, also those in fixtures; `make torture COUNT=N` may take as long as it takes."""
    with deadline(0 if item.config.getoption("--torture-count") else SECONDS):
        return (yield)


@pytest.fixture(scope="session")
def torture_count(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many cases a torture test tries: what `make torture COUNT=N` asks for, else the few that it names."""
    return lambda few: request.config.getoption("--torture-count") or few


def distinct_recipes() -> list[str]:
    """One recipe of each set of objectives and kinds of network: the first of those that a step computes alike."""
    found: dict[Any, str] = {}
    for name, function in RECIPES.items():
        recipe = function(size="tiny")
        networks = recipe.architecture
        terms = tuple((type(objective), objective.teacher) for objective in recipe.objectives)
        kind = terms, networks.naflex, bool(networks.coca)
        found.setdefault(kind, name)
    return list(found.values())


Small = Callable[..., Recipe]
Run = Callable[..., dict[str, Any]]
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
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(SHAPES, "tiny", shape)
            recipe = RECIPES[name](**{"size": "tiny", "resolution": SIDE, "length": LENGTH} | keywords)
        return replace(recipe, architecture=replace(recipe.architecture, encoder=None))

    return make


@pytest.fixture(scope="session")
def visits(scenes: Source) -> list[Visit]:
    """Sixteen scenes as a step sees them."""
    examples = [scenes.example(index, "en") for index in range(16)]
    return [Visit(example, example.image, example.regions, example.captions[0]) for example in examples]


@pytest.fixture(scope="session")
def uneven(visits: list[Visit]) -> list[Visit]:
    """Eight scenes: five without regions, one with regions but no text; two with nothing to read, side by side."""
    some = [replace(visit, regions=()) if place in (0, 1, 2, 3, 6) else visit for place, visit in enumerate(visits[:8])]
    return [replace(visit, caption=None) if place in (2, 3, 5) else visit for place, visit in enumerate(some)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty pictures of a square on a ground, six of them held out, with a caption and a region each."""
    root = tmp_path_factory.mktemp("squares")
    lines = []
    for place, (ground, colour) in enumerate(list(permutations(COLOURS, 2))[:30]):
        picture = Image.new("RGB", (SIDE, SIDE), ground)
        left = place % 16
        picture.paste(colour, (left, 8, left + 12, 24))
        picture.save(root / f"{place}.png")
        region = {"bbox": [left, 8, left + 12, 24], "phrase": f"{colour} square"}
        row = {"file_name": f"{place}.png", "captions": [f"a {colour} square on {ground}"], "regions": [region]}
        lines.append(json.dumps(row | {"split": "val" if place % 5 == 4 else "train"}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return str(root)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """FILE.py:FUNCTION of SigLIP 2 with networks of a few thousand weights."""
    file = tmp_path_factory.mktemp("recipe") / "small_siglip2.py"
    file.write_text(RECIPE)
    return f"{file}:small"


gc.freeze()  # also in processes that import this


def draw(recipe: Recipe, visits: Sequence[Visit], pipeline: TextPipeline) -> Drawn:
    """Every random choice made, from one generator per visit."""
    generators = [np.random.default_rng([7, place]) for place in range(len(visits))]
    return [
        [field.draw(visit, rng, pipeline) for field in recipe.fields]
        for visit, rng in zip(visits, generators, strict=True)
    ]


def collate(recipe: Recipe, drawn: Drawn, pipeline: TextPipeline) -> Batch:
    """The batch of what was drawn, as the loader makes it."""
    batch: Batch = {}
    for index, field in enumerate(recipe.fields):
        batch |= field.collate([row[index] for row in drawn], pipeline)
    return batch


def half_read(recipe: Recipe, mask: str = "random") -> Recipe:
    """The recipe of a step whose tower reads half of each image's patches, and in which all terms have begun."""
    made = drop_tokens(recipe, 0.5, mask, 0.9)
    return replace(made, fields=[field for field in made.fields if field.drawn_at(0.85)])


def exact(batch: Batch) -> Batch:
    """The batch as the device sees it, in float64."""
    moved = to_device(batch, torch.device("cpu"))
    return {name: field.double() if field.is_floating_point() else field for name, field in moved.items()}


@pytest.fixture(scope="session")
def run(recipe: str, folder: str) -> Run:
    """`train` on the squares, with what all such runs share."""

    def go(out: Path, **changes: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "data": [folder],
            "steps": 6,
            "save_every": 3,
            "batch_size": 8,
            "workers": 0,
            "held_out": 0,
            "precision": "fp32",
            "memory_check": False,  # a second for each run
            "vocabulary": 300,
        }
        return train(recipe, out=out, **settings | changes)

    return go
