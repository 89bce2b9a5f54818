"""Data at scale: look-ups of the order, a run's first batch over many tars, also where it resumes, and memory."""

import io
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Row, Variant, compare, positive, resident, start
from benchmarks.report import report
from benchmarks.shards import batches
from opensiglip.data.order import Lanes, Shuffled
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.tar import LANES
from opensiglip.data.sources.tar_index import tar_index
from opensiglip.errors import UserError

SIDE = 64  # pixels of the images
IN_TAR = 10  # samples of each of the many tars
BATCH = 64  # examples of the first batch
FULL, FULL_SAMPLES = 8, 1000  # tars that memory is measured over, and samples of each


def bench(
    rows: int = 10**9,
    row_shards: int = 10**5,
    positions: int = 10**6,
    shards: int = 10_000,
    resumed: int = 10**6,
    examples: int = 100_000,
    rounds: int = 3,
    out: Path = Path("runs/bench"),
) -> None:
    """Costs that do not grow with the data: look-ups in the order, start and resume over many tars, and memory.

    Args:
        rows: rows of the order in which positions are looked up; the peer is a permutation of `positions` rows in
            memory.
        row_shards: shards of those rows.
        positions: number of positions looked up at once, in training order and at random.
        shards: number of indexed tars from which the first batch is drawn.
        resumed: step at which a resumed run begins.
        examples: number of examples after which memory is measured; it is also measured after the first hundredth of
            them.
        rounds: measurements of each look-up, taken in turn; the median is reported.
        out: folder for the JSON and the plot.
    """
    positive(rows=rows, row_shards=row_shards, positions=positions, shards=shards, resumed=resumed)
    positive(examples=examples, rounds=rounds)
    if rows < row_shards:
        raise UserError(f"--rows {rows} is less than --row-shards {row_shards}; give each shard a row.")
    place = start("cpu")
    found = look_ups(rows, row_shards, positions, rounds)
    with tempfile.TemporaryDirectory() as folder:
        found += first_batches(Path(folder) / "many", shards, resumed)
        found += memory(Path(folder) / "full", max(1, examples // 100), examples)
    report("order", found, out, place)


def look_ups(rows: int, shards: int, positions: int, rounds: int) -> list[Row]:
    """Rows found of a step's neighbouring positions and of random ones, beside a permutation that is in memory."""
    sizes = np.full(shards, rows // shards)
    order, whole = Lanes(sizes, 0, LANES), Shuffled(positions, 0)
    neighbours = np.arange(positions) + order.rows // 2
    anywhere = np.random.default_rng(0).integers(0, order.rows, positions)
    variants = [
        Variant("opensiglip, as in training", partial(order.find, neighbours), items=positions),
        Variant("opensiglip, at random", partial(order.find, anywhere), items=positions),
        Variant("opensiglip, made anew", lambda: Lanes(sizes, 0, LANES).find(neighbours[:BATCH]), items=BATCH),
        Variant("numpy permutation", partial(whole.find, np.arange(positions)), items=positions),
    ]
    case = f"{rows:,} rows in {shards:,} shards"
    return compare(case, variants, variants[-1].name, torch.device("cpu"), rounds, torch.float32)


def first_batches(root: Path, shards: int, resumed: int) -> list[Row]:
    """Wall time from nothing to the first batch over many tars whose indexes are there, at step 0 and later."""
    _write_tar(root / "00000.tar", IN_TAR)
    for number in range(1, shards):
        shutil.copyfile(root / "00000.tar", root / f"{number:05d}.tar")
    for file in root.glob("*.tar"):
        tar_index(file)
    case = f"first batch over {shards:,} tars"
    return [_wall(case, f"opensiglip, step {step:,}", partial(_begin, root, step)) for step in (0, resumed)]


def _begin(root: Path, step: int) -> None:
    """Open the tars and make the batch of a step."""
    batches(root, SIDE, BATCH, step)()


def memory(root: Path, few: int, many: int) -> list[Row]:
    """Resident memory of this process once it has read so many examples from tars."""
    for number in range(FULL):
        _write_tar(root / f"{number:05d}.tar", FULL_SAMPLES)
    source = open_source(str(root))

    def read(first: int, last: int) -> None:
        for index in range(first, last):
            source.example(index * 7919 % len(source))

    found = []
    for first, last in ((0, few), (few, many)):
        row = _wall(f"{last:,} examples", "opensiglip tar", partial(read, first, last))
        found.append(replace(row, facts={"resident MiB": round(resident() / 2**20)}))
    return found


def _wall(case: str, variant: str, call: Callable[[], Any]) -> Row:
    """One call, by the clock."""
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    return Row(case, variant, seconds, seconds, seconds, None, 1.0, None, None, {})


def _write_tar(file: Path, samples: int) -> None:
    """A tar of small JPEGs with texts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    Image.effect_noise((SIDE, SIDE), 60).convert("RGB").save(picture, "JPEG")
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(samples):
            for name, data in ((f"{number:06d}.jpg", picture.getvalue()), (f"{number:06d}.txt", b"a picture")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
