"""The way from a JPEG to a batch: images a second and core, ours against open_clip's transform."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Variant, compare, peer, positive, start
from benchmarks.report import report
from benchmarks.shards import indexing, pace
from benchmarks.views import own_views, torchvision_views
from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.fields.field import Visit
from opensiglip.data.fields.frame import Frame
from opensiglip.data.sources.images import read_image
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.recipes import siglip, siglip2

MADE = 24  # images, where there are no photographs
SIDE, QUALITY = 500, 90  # pixels of the longer side, JPEG quality
GRAIN = 6.0  # deviation of the noise on them, in grey levels: a drawing's flat grounds decode quicker than a photograph


def bench(
    kind: Literal["jpeg", "tar", "parquet", "folder"] = "jpeg",
    data: Path | None = None,
    resolution: int = 224,
    count: int = MADE,
    rounds: int = 5,
    samples: int = 2000,
    out: Path = Path("runs/bench"),
) -> None:
    """JPEG to batch on one core, against open_clip: single files, or tars, parquet and folders by the whole loader.

    Args:
        kind: jpeg measures decoding and resizing, and all draws of a step's fields, against open_clip's transform; and
            the views of self-distillation against torchvision's functions, one view at a time. Another kind measures
            our loader over sources of this kind against open_clip's WebDataset pipeline (webdataset 0.2.86); with tar,
            also the index.
        data: folder of JPEGs to read; by default scenes with added grain are drawn at 500 pixels.
        resolution: side of the networks' input in pixels.
        count: number of JPEGs; with `jpeg` one batch has all of them.
        rounds: measurements of each variant, taken in turn; the median is reported.
        samples: samples in the shards, which repeat the JPEGs; a batch has 64.
        out: folder for the JSON and the plot.
    """
    positive(resolution=resolution, count=count, rounds=rounds, samples=samples)
    place = start("cpu")
    with tempfile.TemporaryDirectory() as folder:
        paths = _found(data, count) if data is not None else made_photographs(Path(folder), count)
        if kind != "jpeg":
            found = pace(kind, paths, Path(folder), resolution, samples, rounds)
            if kind == "tar":
                found += indexing(Path(folder), rounds)
            report(f"input-{kind}", found, out, place)
            return
        frame = Frame(resolution)

        def decode(path: Path) -> torch.Tensor:
            return frame.apply(Example(read_image(path), ()), None)[0]

        def batch(read: Callable[[Path], torch.Tensor]) -> torch.Tensor:
            return torch.stack([read(path) for path in paths])

        ways = {"opensiglip decode + resize": decode} | _peers(resolution)
        variants = [Variant(name, partial(batch, read), items=len(paths)) for name, read in ways.items()]
        variants += [_whole(recipe, paths, resolution) for recipe in (siglip, siglip2)]
        last = variants[1].name if len(variants) > 3 else variants[0].name
        rows = compare(f"{resolution} pixels", variants, last, place, rounds, torch.float32)
        images = [read_image(path) for path in paths]
        drawing = {"opensiglip views": own_views, "torchvision, one view at a time": torchvision_views}
        variants = [
            Variant(name, partial(draw, images, resolution), items=len(images)) for name, draw in drawing.items()
        ]
        rows += compare("1 global and 8 local views", variants, variants[1].name, place, rounds, torch.float32)
    report("input", rows, out, place)


def _whole(recipe: Callable[..., Any], paths: list[Path], resolution: int) -> Variant:
    """All that the loader does for a step of a recipe, additional views included."""
    texts = [f"a picture of number {place}, on a ground" for place in range(len(paths))]
    pipeline, built = TextPipeline.train(texts), recipe(size="B/16", resolution=resolution)

    def batch() -> None:
        drawn = []
        for place, path in enumerate(paths):
            rng, image = np.random.default_rng(place), read_image(path)
            box = (0.0, 0.0, image.shape[2] / 2, image.shape[1] / 2)
            example = Example(image, (Caption(texts[place]),), (Region(box, {"en": "a thing"}),))
            visit = Visit.draw(example, built.frame, rng, "en")
            drawn.append([field.draw(visit, rng, pipeline) for field in built.fields])
        for index, field in enumerate(built.fields):
            field.collate([row[index] for row in drawn], pipeline)

    return Variant(f"opensiglip {recipe.__name__}, whole batch", batch, items=len(paths))


def _peers(resolution: int) -> dict[str, Callable[[Path], torch.Tensor]]:
    if peer("open_clip", "open_clip_torch") is None:
        return {}
    from open_clip.transform import image_transform

    transform = image_transform(resolution, is_train=False)

    def read(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            return transform(image)

    return {"open_clip transform": read}


def made_photographs(folder: Path, count: int) -> list[Path]:
    """Scenes at 4:3 with grain, as JPEGs."""
    source, rng, paths = open_source("scenes:drawings=60", pixels=SIDE), np.random.default_rng(0), []
    for place in range(count):
        picture = source.example(place).image[:, : SIDE * 3 // 4].permute(1, 2, 0).numpy()
        grainy = (picture + rng.normal(0, GRAIN, picture.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{place}.jpg")
        Image.fromarray(grainy).save(paths[-1], quality=QUALITY)
    return paths


def _found(folder: Path, count: int) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if not paths:
        raise UserError(f"--data {folder} has no .jpg; name a folder with JPEGs.")
    return paths
