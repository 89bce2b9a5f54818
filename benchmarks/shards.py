"""Reading from tars, parquet files and folders: our loader beside open_clip's, and the index."""

import tarfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row, Variant, compare, peer
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.tar_index import scan
from opensiglip.data.text import TextPipeline
from opensiglip.data.writing.convert import convert
from opensiglip.recipes import siglip

PEER = "open_clip WebDataset"
WEBDATASET = "0.2.86"
SHARD_MB = 20
BATCH = 64  # images


def pace(kind: str, paths: list[Path], folder: Path, resolution: int, samples: int, rounds: int) -> list[Row]:
    """Batches from `samples` JPEGs in shards of a kind, from a folder, and by open_clip from tars."""
    source = folder / "source"
    write_folder(source, [path.read_bytes() for path in paths], samples)
    for to in dict.fromkeys((kind, "tar", "folder")):
        convert(str(source), folder / to, to=to, shard_mb=SHARD_MB, workers=0)
    variants = [Variant(f"opensiglip {kind}", batches(folder / kind, resolution, BATCH), items=BATCH)]
    if kind != "folder":
        variants.append(Variant("opensiglip folder", batches(folder / "folder", resolution, BATCH), items=BATCH))
    if _webdataset() and peer("open_clip_train.data", "open_clip_torch"):
        loader = _open_clip(folder / "tar", resolution, BATCH, samples)
        variants.append(Variant(PEER, lambda: next(loader), items=BATCH))
    last = variants[-1].name
    return compare(f"{kind}, {resolution} pixels", variants, last, torch.device("cpu"), rounds, torch.float32)


def _webdataset() -> bool:
    """Is the webdataset there that open_clip's pipeline reads by? Later ones hand it members without names."""
    if peer("webdataset", "webdataset") is None:
        return False
    found = version("webdataset")
    if found != WEBDATASET:
        print(f"left out: open_clip's pipeline needs webdataset {WEBDATASET}, and {found} is installed")
    return found == WEBDATASET


def indexing(folder: Path, rounds: int) -> list[Row]:
    """The index of the largest tar, beside Python's own reading of the members; items are MB."""
    tar = max((folder / "tar").glob("*.tar"), key=lambda file: file.stat().st_size)
    size = tar.stat().st_size / 1e6

    def members() -> None:
        with tarfile.open(tar) as opened:
            opened.getmembers()

    variants = [
        Variant("opensiglip index", partial(scan, tar), items=size),
        Variant("tarfile.getmembers", members, items=size),
    ]
    return compare("index, MB", variants, variants[-1].name, torch.device("cpu"), rounds, torch.float32)


def batches(folder: Path, resolution: int, size: int, first: int = 0) -> Callable[[], Any]:
    """A call that makes the next step's batch of `siglip`, pixels and ids, from step `first` on."""
    source, recipe = open_source(str(folder)), siglip(size="B/16", resolution=resolution)
    pipeline = TextPipeline.train(["a picture of number 7, on a ground"] * 9)
    plan = DataPlan(
        sources=[source], frame=recipe.frame, fields=recipe.fields, pipeline=pipeline, batch_size=size, seed=0, steps=1
    )
    steps, numbers = Steps(plan), count(first)
    return lambda: steps[next(numbers)]


def _open_clip(folder: Path, resolution: int, size: int, samples: int) -> Iterator[Any]:
    """The batches of open_clip's own loader, in this process, over and over."""
    from open_clip import get_tokenizer
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset  # type: ignore[import-untyped]

    names = sorted(file.stem for file in folder.glob("train-*.tar"))
    shards = (
        f"{folder}/train-{{{names[0][-5:]}..{names[-1][-5:]}}}.tar" if len(names) > 1 else f"{folder}/{names[0]}.tar"
    )
    arguments = Namespace(
        train_data=shards,
        train_num_samples=max(size, samples * 9 // 10),
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=size,
        workers=0,
        world_size=1,
    )
    transform = image_transform(resolution, is_train=False)
    found = get_wds_dataset(arguments, transform, is_train=True, tokenizer=get_tokenizer("ViT-B-16"))
    while True:
        yield from found.dataloader


def write_folder(root: Path, images: list[bytes], samples: int) -> None:
    """So many JPEGs with a text beside each."""
    root.mkdir(parents=True)
    for number in range(samples):
        (root / f"{number:06d}.jpg").write_bytes(images[number % len(images)])
        (root / f"{number:06d}.txt").write_text(f"a picture of number {number}, on a ground")
